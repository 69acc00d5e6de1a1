"""What was proven of KVM on this host, kept below HOME, and what that holds for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmfork.host import facts, kvm
from vmfork.host.folders import make_private, write_whole
from vmfork.hypervisor.qemu import board_of
from vmfork.records import read_record, write_record

if TYPE_CHECKING:
    from pathlib import Path

    from vmfork.config import Places
    from vmfork.hypervisor.qemu import QemuBinary
    from vmfork.image import Image


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known of KVM here. `usable` with an empty reason, or not usable and why.

    `console_tail` is the end of what the guest printed where it was tried and did not come up.
    """

    usable: bool
    reason: str
    console_tail: str = ""


def locate_verdict(*, image: Image, binary: QemuBinary, machine: str, cpu_model: str, places: Places) -> Path:
    """The file of the verdict for that image, emulator, kind of machine and CPU model on this host as it is now.

    It is another once the host has rebooted, or its kernel or the parameters of KVM's modules have changed.
    """
    plan = binary.stamp, binary.version, image.digest, board_of(machine).kind, cpu_model
    return _folder_of(places) / f"{_name_host()}{_digest(plan)}.json"


def find_failure(places: Places) -> str | None:
    """Why KVM ran none of the guests that were tried on this host as it is now; `None` where one ran, or none was."""
    found = [read_verdict(path) for path in sorted(_folder_of(places).glob(f"{_name_host()}*.json"))]
    tried = [verdict for verdict in found if verdict is not None]
    return None if not tried or any(verdict.usable for verdict in tried) else tried[0].reason


def _folder_of(places: Places) -> Path:
    return places.home / "verdicts"


def _name_host() -> str:
    """How names of verdicts begin that hold on this host as it is now."""
    return f"kvm-{_digest((facts.boot_id(), facts.kernel_release(), kvm.read_parameters()))[:8]}-"


def _digest(holds_for: tuple[object, ...]) -> str:
    return hashlib.sha256(repr(holds_for).encode()).hexdigest()[:16]


def read_verdict(path: Path) -> Verdict | None:
    """What was proven; `None` where nothing was, or the file is damaged."""
    try:
        return read_record(Verdict, path.read_bytes())
    except (OSError, ValueError):
        return None


def keep_verdict(verdict: Verdict, path: Path) -> None:
    """`read_verdict` gives it from now on."""
    make_private(path.parent)
    write_whole(path, write_record(verdict))

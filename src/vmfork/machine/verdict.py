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
    holds_for = (
        facts.boot_id(),
        facts.kernel_release(),
        kvm.read_parameters(),
        binary.stamp,
        binary.version,
        image.digest,
        board_of(machine).kind,
        cpu_model,
    )
    digest = hashlib.sha256(repr(holds_for).encode()).hexdigest()[:16]
    return places.home / "verdicts" / f"kvm-{digest}.json"


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

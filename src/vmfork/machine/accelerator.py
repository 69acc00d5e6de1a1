"""Whether KVM runs the guest here: proven by booting it, remembered, never assumed from the device's presence."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from vmfork.errors import GuestError, HostError, LaunchError
from vmfork.host import facts, kvm
from vmfork.host.folders import make_private, write_whole
from vmfork.hypervisor.base import Hardware
from vmfork.hypervisor.qemu import board_for, default_cpu_model
from vmfork.machine.launch import BootPlan, boot_base
from vmfork.machine.least import ample_memory_mib
from vmfork.progress import Progress, ignore_progress

if TYPE_CHECKING:
    from pathlib import Path

    from vmfork.config import Places, VMConfig
    from vmfork.hypervisor.qemu import QemuBinary
    from vmfork.image import Image
    from vmfork.progress import ProgressListener

_log = logging.getLogger("vmfork")

# No boot that goes on is given up, however slow: a nested KVM takes a minute. This ends one that goes on for ever.
_PROOF_LIMIT_S = 900.0

_warned = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known of KVM here. `usable` with an empty reason, or not usable and why.

    `console_tail` is the end of what the guest printed where it was tried and did not come up.
    """

    usable: bool
    reason: str
    console_tail: str = ""


async def decide_hardware(
    config: VMConfig,
    *,
    image: Image,
    binary: QemuBinary,
    places: Places,
    progress: ProgressListener = ignore_progress,
) -> Hardware:
    """The hardware for `config`, its accelerator decided: `auto` takes KVM where it was proven to run this guest.

    `HostError` when `kvm` is demanded and does not run it.
    """
    accel = "tcg"
    if config.accel != "tcg":
        verdict = await prove_kvm(config, image=image, binary=binary, places=places, progress=progress)
        if verdict.usable:
            accel = "kvm"
        elif config.accel == "kvm":
            raise HostError(
                f"KVM cannot run the guest: {verdict.reason}", hint="use accel = auto or tcg: slower, but it runs"
            )
        else:
            # Said at each boot and build, not only when it was proven: TCG is never silent.
            progress(Progress(task="kvm", step=f"using TCG, many times slower than KVM: {verdict.reason}"))
            warn_if_forbidden(accel, config)
    return hardware_for(config, accel, binary)


def hardware_for(config: VMConfig, accel: str, binary: QemuBinary) -> Hardware:
    board = board_for(config.machine)
    return Hardware(
        machine=board.type_for(binary),
        accel=accel,
        cpu_model=config.cpu_model or default_cpu_model(accel),
        cpus=config.cpus,
        memory_mib=config.memory_mib,
        max_cpus=config.max_cpus,
        max_memory_mib=config.max_memory_mib,
        vmgenid=board.has_vmgenid and config.reseed in ("both", "vmgenid"),
    )


async def prove_kvm(
    config: VMConfig,
    *,
    image: Image,
    binary: QemuBinary,
    places: Places,
    progress: ProgressListener = ignore_progress,
    anew: bool = False,
) -> Verdict:
    """The verdict for this host, emulator, image and CPU model, from a real boot.

    The boot goes on as long as the guest makes progress, however slow; one that stands still ends after 5 s. The
    verdict is kept below HOME and holds until the host reboots, or its kernel, KVM's module parameters, the emulator,
    the image or the CPU model change. `anew` proves it again.
    """
    if (refusal := kvm.find_refusal()) is not None:
        return Verdict(usable=False, reason=refusal.reason)
    path = _verdict_path(config, image, binary, places)
    known = None if anew else _read_verdict(path)
    if known is not None:
        return known
    progress(Progress(task="kvm", step="proving that KVM runs the guest"))
    verdict = await _boot_under_kvm(config, image, binary, places)
    make_private(path.parent)
    write_whole(path, json.dumps(asdict(verdict)).encode())
    step = "KVM runs the guest" if verdict.usable else f"KVM does not run the guest: {verdict.reason}"
    progress(Progress(task="kvm", step=step))
    _log.info("%s", step)
    return verdict


def warn_if_forbidden(accel: str, config: VMConfig) -> None:
    """Once per process: a machine runs under TCG only because this user may not open /dev/kvm, and what mends that."""
    global _warned  # noqa: PLW0603 - once per process is what it is for
    if _warned or accel != "tcg" or config.accel != "auto":
        return
    _warned = True
    refusal = kvm.find_refusal()
    if refusal is not None and refusal.forbidden:
        _log.warning("note: %s: TCG is used, many times slower. To change that: %s", refusal.reason, refusal.todo)


async def _boot_under_kvm(config: VMConfig, image: Image, binary: QemuBinary, places: Places) -> Verdict:
    # Whether the CPU can run the kernel does not depend on the size: one CPU, and so much memory that a guest that dies
    # did not die of that. It is not touched before it is needed.
    small = replace(
        config,
        accel="kvm",
        cpus=1,
        memory_mib=ample_memory_mib(image),
        max_cpus=0,
        max_memory_mib=0,
        boot_timeout_s=_PROOF_LIMIT_S,
    )
    hardware = hardware_for(small, "kvm", binary)
    try:
        # A CPU that KVM cannot go on emulating is stopped, and QEMU waits for somebody to look at it; or it is emulated
        # for ever at the same place.
        base = await boot_base(BootPlan(small, image, binary, hardware), places=places, watched=True)
    except LaunchError as error:
        return Verdict(usable=False, reason=_tell_why(error), console_tail=error.console_tail)
    except GuestError as error:
        return Verdict(usable=False, reason=error.message, console_tail=error.console_tail)
    await base.aclose()
    return Verdict(usable=True, reason="")


def _tell_why(error: LaunchError) -> str:
    """The reason, with QEMU's first complaint: what follows is a dump of the CPU's registers, or an assertion."""
    complaints = (line.strip() for line in error.log_tail.splitlines() if "warning:" not in line)
    said = next(filter(None, complaints), "")
    return f"{error.reason}: {said}" if said else error.reason


def _verdict_path(config: VMConfig, image: Image, binary: QemuBinary, places: Places) -> Path:
    facts_known = (
        facts.boot_id(),
        facts.kernel_release(),
        kvm.read_parameters(),
        binary.stamp,
        binary.version,
        image.digest,
        config.cpu_model or default_cpu_model("kvm"),
    )
    return places.home / "verdicts" / f"kvm-{hashlib.sha256(repr(facts_known).encode()).hexdigest()[:16]}.json"


def _read_verdict(path: Path) -> Verdict | None:
    try:
        return Verdict(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None

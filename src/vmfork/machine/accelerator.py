"""Whether KVM runs the guest here: proven by booting it, remembered, never assumed from the device's presence."""

from __future__ import annotations

import logging
import os
import signal
from contextlib import suppress
from dataclasses import replace
from errno import ENOMEM
from typing import TYPE_CHECKING

from vmfork.config import VMConfig
from vmfork.errors import GuestError, HostError, LaunchError
from vmfork.host import kvm
from vmfork.machine.ending import find_panic, is_out_of_memory
from vmfork.machine.launch import boot_base
from vmfork.machine.least import ample_memory_mib
from vmfork.machine.plan import make_plan
from vmfork.machine.stall import unless_stuck
from vmfork.machine.verdict import Verdict, keep_verdict, locate_verdict, read_verdict
from vmfork.progress import Progress

if TYPE_CHECKING:
    from vmfork.config import Instance
    from vmfork.hypervisor.qemu import QemuBinary
    from vmfork.image import Image
    from vmfork.machine.plan import Plan

_log = logging.getLogger("vmfork")

# No boot that goes on is given up, however slow: a nested KVM takes a minute. This ends one that goes on for ever.
_PROOF_LIMIT_S = 900.0
# QEMU does not end itself by these: what it finds wrong ends by SIGABRT. SIGBUS is a page that had no memory.
_FROM_OUTSIDE = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP, -signal.SIGQUIT, -signal.SIGBUS}
# It obeys the gentle ones of them, and says so (QEMU 7.2, softmmu/runstate.c, qemu_kill_report).
_OBEYED = "terminating on signal"


async def decide_accel(config: VMConfig, *, image: Image, binary: QemuBinary, instance: Instance) -> str:
    """`kvm` or `tcg`, as `config` demands: `auto` takes KVM where it was proven to run this guest.

    Raises `HostError` when `kvm` is demanded and does not run it, and what `prove_kvm` raises.
    """
    if config.accel == "tcg":
        return "tcg"
    verdict = await prove_kvm(config, image=image, binary=binary, instance=instance)
    if verdict.usable:
        return "kvm"
    if config.accel == "kvm":
        raise HostError(
            f"KVM cannot run the guest: {verdict.reason}", hint="use accel = auto or tcg: slower, but it runs"
        )
    # Said at each boot and build, not only when it was proven: TCG is never silent.
    instance.progress(Progress(task="kvm", step=f"using TCG, many times slower than KVM: {verdict.reason}"))
    kvm.warn_if_forbidden()
    return "tcg"


async def prove_kvm(
    config: VMConfig, *, image: Image, binary: QemuBinary, instance: Instance, anew: bool = False
) -> Verdict:
    """The verdict for this host, emulator, image, kind of machine and CPU model, from a real boot of nothing else.

    The boot goes on as long as the guest makes progress, however slow; one that stands still ends after 5 s. The
    verdict is kept below HOME and holds until the host reboots, or its kernel, KVM's module parameters, the emulator,
    the image, the kind of machine or the CPU model change. `anew` proves it again.

    What says nothing of KVM is raised, and no verdict is kept: `NoRoom`, a `HostError` of what keeps the emulator in,
    and a `LaunchError` where memory ran out or QEMU was killed.
    """
    if (refusal := kvm.find_refusal()) is not None:
        return Verdict(usable=False, reason=refusal.reason)
    plan = await make_plan(_plainest(config, image), image=image, binary=binary, accel="kvm")
    path = locate_verdict(
        image=image,
        binary=plan.binary,
        machine=plan.hardware.machine,
        cpu_model=plan.hardware.cpu_model,
        places=instance.places,
    )
    known = None if anew else read_verdict(path)
    if known is not None:
        return known
    instance.progress(Progress(task="kvm", step="proving that KVM runs the guest"))
    verdict = await _try_boot(plan, instance)
    with suppress(OSError):  # proven again next time
        keep_verdict(verdict, path)
    step = "KVM runs the guest" if verdict.usable else f"KVM does not run the guest: {verdict.reason}"
    instance.progress(Progress(task="kvm", step=step))
    _log.info("%s", step)
    return verdict


def _plainest(config: VMConfig, image: Image) -> VMConfig:
    """The machine that is proven for `config`: what the verdict's name does not tell of it is as it is by default.

    Whether the CPU can run the kernel does not depend on the size. So it has one CPU, and so much memory that a guest
    that dies did not die for lack of it. Memory that is not touched costs nothing.
    """
    wanted = VMConfig(
        image=config.image,
        machine=config.machine,
        cpu_model=config.cpu_model,
        memory_mib=ample_memory_mib(image),
    )
    return replace(wanted.made_as(config), boot_timeout_s=_PROOF_LIMIT_S)


async def _try_boot(plan: Plan, instance: Instance) -> Verdict:
    try:
        # Where KVM cannot go on emulating a CPU, it stops, and QEMU waits for somebody to look at it; or it emulates
        # the same place for ever.
        base = await boot_base(plan, instance=instance, watch=unless_stuck)
    except LaunchError as error:
        if _says_nothing(error):
            raise
        return Verdict(usable=False, reason=_explain_failure(error), console_tail=error.console_tail)
    except GuestError as error:
        return Verdict(usable=False, reason=error.message, console_tail=error.console_tail)
    await base.aclose()
    return Verdict(usable=True, reason="")


def _says_nothing(error: LaunchError) -> bool:
    """Whether the machine failed of what has nothing to do with KVM: of memory, or because somebody killed it."""
    if error.exit_code in _FROM_OUTSIDE:
        return True
    if error.exit_code is not None and (_OBEYED in error.log_tail or os.strerror(ENOMEM) in error.log_tail):
        return True
    return is_out_of_memory(find_panic(error.console_tail))


def _explain_failure(error: LaunchError) -> str:
    """The reason, with QEMU's first complaint: what follows is a dump of the CPU's registers, or an assertion."""
    complaints = (line.strip() for line in error.log_tail.splitlines() if "warning:" not in line)
    said = next(filter(None, complaints), "")
    return f"{error.reason}: {said}" if said else error.reason

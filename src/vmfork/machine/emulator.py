"""Which emulator starts a machine: one that was configured; under KVM a slim one with all it takes; else the full.

Debian's package of QEMU has two for a PC. `qemu-system-x86_64-microvm` is for KVM alone, less than half the size, and
starts in less than half the time. What it was built with differs from release to release, so it is asked.
"""

from __future__ import annotations

import logging
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vmfork.errors import ConfigError, HostError
from vmfork.hypervisor.qemu import ask_abilities, find_qemu, find_qemu_like
from vmfork.machine.plan import make_hardware

if TYPE_CHECKING:
    from vmfork.config import Places, VMConfig
    from vmfork.hypervisor.base import Hardware
    from vmfork.hypervisor.qemu import Abilities, QemuBinary
    from vmfork.machine.facts import Make

_log = logging.getLogger("vmfork")

SLIM = "qemu-system-x86_64-microvm"


@dataclass(frozen=True, slots=True)
class Candidate:
    """An emulator that was looked at. `lacks` is what it misses for a machine, empty when it will do."""

    binary: QemuBinary
    lacks: tuple[str, ...]

    @property
    def lack(self) -> str:
        """What it lacks, as a sentence has it."""
        return f"{self.binary.path} has no {', no '.join(self.lacks)}"


async def find_emulator(config: VMConfig, *, places: Places) -> QemuBinary:
    """The emulator that `config` names, else the host's full one. It has what `config` needs.

    Raises `ConfigError` or `HostError` when it lacks something.
    """
    binary = await find_qemu(config.qemu)
    accels = ("kvm", "tcg") if config.accel == "auto" else (config.accel,)
    looked = [await _look(binary, make_hardware(config, binary=binary, accel=accel), places) for accel in accels]
    return _accept(min(looked, key=lambda candidate: len(candidate.lacks)), config)


async def choose_emulator(config: VMConfig, binary: QemuBinary, *, accel: str, places: Places) -> QemuBinary:
    """The emulator that starts machines of `config`: `binary`, as `find_emulator` gave it, or the slim one if it can.

    Raises `ConfigError` or `HostError` when neither can under the accelerator `accel`.
    """
    hardware = make_hardware(config, binary=binary, accel=accel)
    if not config.qemu and accel == "kvm":
        try:
            slim = await find_slim(hardware, binary, places=places)
        except HostError as error:
            slim = None
            _log.info("the slim emulator is left alone: %s", error)
        if slim is not None and not slim.lacks:
            return slim.binary
    return _accept(await _look(binary, hardware, places), config)


async def find_slim(hardware: Hardware, full: QemuBinary, *, places: Places) -> Candidate | None:
    """The slim emulator and what it lacks for `hardware`; `None` where the host has none.

    It must be of the full one's very version: then each opens what the other froze.
    """
    found = shutil.which(SLIM)
    if found is None:
        return None
    slim = await _look(await find_qemu(found), hardware, places)
    if slim.binary.version != full.version:
        return replace(slim, lacks=(f"version {full.version}", *slim.lacks))
    return slim


async def find_emulator_like(
    path: str, version: str, stamp: str, *, configured: str = "", places: Places
) -> QemuBinary:
    """The emulator that opens what the one at `path` froze: the one configured, else that very one, else the full."""
    located = configured or (shutil.which(SLIM) if Path(path).name == SLIM else "") or ""
    binary = await find_qemu_like(path, version, stamp, configured=located)
    if binary.version != version:
        return binary  # whoever compares versions refuses it, so it need not be asked for more
    return _as_built(binary, await ask_abilities(binary, kept=places.emulators))


async def list_openers(hardware: Hardware, version: str, *, places: Places) -> list[QemuBinary]:
    """The emulators of this host that open what one of `version` froze of `hardware`: the full one, the slim one."""
    found = []
    for configured in ("", shutil.which(SLIM)):
        if configured is not None:
            with suppress(HostError):  # it is not there, or does not run
                candidate = await _look(await find_qemu(configured), hardware, places)
                if candidate.binary.version == version and not candidate.lacks:
                    found.append(candidate.binary)
    return found


async def find_maker(make: Make, *, places: Places) -> QemuBinary:
    """The emulator that reads the state of devices which a machine of that make saves.

    Raises `HostError` when the distribution has replaced it since by another version.
    """
    version = make.traits.get("qemu.version", "")
    configured = make.qemu_path
    binary = await find_emulator_like(make.qemu_path, version, make.qemu_stamp, configured=configured, places=places)
    if binary.version != version:
        raise HostError(
            f"the machine runs in QEMU {version}, and {binary.path} is {binary.version} by now: neither reads the"
            " other's state",
            hint="end the machine, and start it again with the emulator of today",
        )
    return binary


async def _look(binary: QemuBinary, hardware: Hardware, places: Places) -> Candidate:
    abilities = await ask_abilities(binary, kept=places.emulators)
    return Candidate(_as_built(binary, abilities), tuple(abilities.find_missing(hardware)))


def _as_built(binary: QemuBinary, abilities: Abilities) -> QemuBinary:
    return replace(binary, has_sandbox=abilities.has_sandbox)


def _accept(candidate: Candidate, config: VMConfig) -> QemuBinary:
    if not candidate.lacks:
        return candidate.binary
    if config.qemu:
        raise ConfigError(
            "vm.qemu", config.qemu, candidate.lack, hint="leave it empty, or ask for a machine that it can start"
        )
    raise HostError(candidate.lack, hint="install the full one: apt-get install qemu-system-x86")

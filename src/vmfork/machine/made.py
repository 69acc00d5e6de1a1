"""The emulator that a running machine was started with, for another of its kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.errors import HostError
from vmfork.machine.emulator import find_emulator_like

if TYPE_CHECKING:
    from vmfork.config import Places
    from vmfork.hypervisor.qemu import QemuBinary
    from vmfork.machine.facts import Make


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

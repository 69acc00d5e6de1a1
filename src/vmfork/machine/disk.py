"""The disk that a machine is to have to write to: as what it is made from has it, or given to it alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.errors import ConfigError
from vmfork.hypervisor.qemu import board_of
from vmfork.units import format_mib, parse_size_mib

if TYPE_CHECKING:
    from collections.abc import Collection

    from vmfork.hypervisor.base import Hardware
    from vmfork.units import Size

# What an agent says of itself that mounts a disk which came after its guest had booted.
TAKES_DISK = "disk"


def read_disk(disk: Size | None) -> int | None:
    """MiB of the disk that is asked for; `None` leaves it to what the machine is made from. Raises `ConfigError`."""
    return None if disk is None else parse_size_mib(disk, field="disk")


def plan_disk(wanted_mib: int | None, hardware: Hardware, capabilities: Collection[str], *, whose: str) -> int:
    """MiB of the disk that a machine made from one of `hardware` is given: 0 where it has what is asked for already.

    `capabilities` are those of its agent. Raises `ConfigError` when it cannot have the disk that is asked for.
    """
    have_mib = hardware.scratch_mib
    if wanted_mib is None or wanted_mib == have_mib:
        return 0
    build = f"build a template with one: vmfork template build NAME --disk {wanted_mib}"
    if have_mib:
        asked = f"not of {format_mib(wanted_mib)}" if wanted_mib else "not none"
        reason = f"{whose} has a disk of {format_mib(have_mib)}, {asked}, and its forks have the same"
        hint = f"leave the size out; or {build}" if wanted_mib else "leave it out, or take a template without a disk"
        raise ConfigError("disk", wanted_mib, reason, hint=hint)
    if not board_of(hardware.machine).takes_disk:
        reason = f"{whose} is a {hardware.machine}, which takes no disk once it has booted"
        raise ConfigError("disk", wanted_mib, reason, hint=f"{build}; or with --machine q35")
    if TAKES_DISK not in capabilities:
        reason = f"the agent of {whose} is older, and takes no disk"
        hint = "build the image and the template again with this vmfork"
        raise ConfigError("disk", wanted_mib, reason, hint=hint)
    return wanted_mib

"""Whether image and host suit the board that was asked for, and what the guest's kernel has to be told of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from vmfork.errors import ConfigError, HostError
from vmfork.host.tsc import has_steady_tsc, measure_tsc_khz
from vmfork.hypervisor.qemu import board_for, board_of

if TYPE_CHECKING:
    from vmfork.config import VMConfig
    from vmfork.hypervisor.base import Hardware
    from vmfork.image import Image


CARD_MODULE = "virtio_net"
DISK_MODULE = "ext4"


def check_board(config: VMConfig, image: Image) -> None:
    """Raises `ConfigError` when the image's guest would find no device on the board asked for."""
    board = board_for(config.machine)
    if board.module and board.module not in image.boot_modules:
        raise ConfigError(
            "vm.machine",
            board.kind,
            f"image {image.name!r} does not load {board.module}: its guest would find no device",
            hint=f"build it with this vmfork: vmfork image build {image.name} --rebuild",
        )


def check_card(config: VMConfig, image: Image) -> None:
    """Raises `ConfigError` when a network card is asked for that the image's guest would not find."""
    if config.nic and CARD_MODULE not in image.boot_modules:
        raise ConfigError(
            "vm.nic",
            config.nic,
            f"image {image.name!r} does not load {CARD_MODULE}: its guest would find no network card",
            hint=f"build it with this vmfork: vmfork image build {image.name} --rebuild",
        )


def check_disk(config: VMConfig, image: Image) -> None:
    """Raises `ConfigError` when a disk is asked for that the image's guest would not find."""
    if config.disk_mib and DISK_MODULE not in image.boot_modules:
        raise ConfigError(
            "vm.disk_mib",
            config.disk_mib,
            f"image {image.name!r} does not load {DISK_MODULE}: its guest would find no disk",
            hint=f"build it with this vmfork: vmfork image build {image.name} --rebuild",
        )


def check_clock(hardware: Hardware) -> None:
    """Raises `HostError` when the guest would have no clock to go by."""
    if needs_tsc(hardware) and not has_steady_tsc():
        raise HostError(
            f"without KVM the machine {hardware.machine} has no clock but the processor's TSC, not a steady one here",
            hint="use machine = q35",
        )


async def board_args(hardware: Hardware) -> str:
    """What the guest's kernel has to be told of its board, with a space before each argument.

    A guest that must find out the TSC's rate does so beside the timer's ticks, of which it misses some on a busy host:
    "could not calculate TSC khz", and it stands still; or it finds the TSC too fast and keeps time by the ticks, a
    quarter too slow (QEMU 7.2, microvm, TCG). Under TCG its TSC is the host's. KVM tells its guest.
    """
    told = board_of(hardware.machine).kernel_args
    if needs_tsc(hardware):
        told += f" tsc_early_khz={await asyncio.to_thread(measure_tsc_khz)} tsc=reliable"
    return told and f" {told}"


def needs_tsc(hardware: Hardware) -> bool:
    """The guest has no other clock, and nobody but us tells it how fast this one is."""
    return hardware.accel == "tcg" and not board_of(hardware.machine).keeps_time

"""Whether a pool can be held at all: the least that its machines cost. Each is let in for itself when it is started."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.errors import ConfigError
from vmfork.factory.choice import Want
from vmfork.host import facts
from vmfork.image import ImageStore
from vmfork.template.source import Source
from vmfork.units import MIB, format_mib

if TYPE_CHECKING:
    from vmfork.config import FactoryConfig, Instance
    from vmfork.factory.kind import Kind

# A parked fork costs this much beyond what it shares: QEMU with its translated code, and the pages it wrote. Measured
# 30 MiB with 256 MiB of RAM; more once it is used, which is what a machine is let in with (admission/charge.py).
PARKED_FORK_MIB = 64


def check_size(size: int, kind: Kind) -> None:
    """Raises `ConfigError`, with the arithmetic, when the host has no memory for `size` parked machines.

    Machines that share a template's memory are counted with what they have of their own, others with all of it.
    """
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ConfigError("factory.cache", size, f"{size!r} is not a number of machines", hint="give 1 or more")
    _check_room(size, each_mib=PARKED_FORK_MIB + (0 if kind.shares_memory else kind.hardware.memory_mib))


async def check_pool(config: FactoryConfig, *, instance: Instance) -> None:
    """Raises `ConfigError`, as `check_size` will, before anything is built for the pool of `config`.

    A template that is still to be built is counted too. Without a pool nothing is checked.
    """
    if not config.cache:
        return
    vm = config.vm
    ram_mib = Want.of(vm, images=ImageStore(instance.places.images)).config.memory_mib
    pools = max(1, len(config.template_names))
    if not config.template_names:
        _check_room(config.cache, each_mib=PARKED_FORK_MIB + ram_mib)
        return
    is_there = not config.template or await Source.find(
        config.template_name, vm, instance=instance, any_kind=vm.is_plain
    )
    _check_room(config.cache, pools=pools, each_mib=PARKED_FORK_MIB, template_mib=0 if is_there else ram_mib)


def _check_room(size: int, *, each_mib: int, pools: int = 1, template_mib: int = 0) -> None:
    """Raises `ConfigError` when `size` machines in each of `pools` do not fit beside a template of `template_mib`."""
    available_mib = facts.available_memory_bytes() // MIB
    if pools * size * each_mib + template_mib > available_mib:
        of_each = f" of each of {pools} templates, {format_mib(each_mib)} each," if pools > 1 else ""
        template = f" and their template {format_mib(template_mib)}" if template_mib else ""
        most = max(0, available_mib - template_mib) // (each_mib * pools)
        raise ConfigError(
            "factory.cache",
            size,
            f"{size} machines{of_each or f' of {format_mib(each_mib)} each'} need "
            f"{format_mib(pools * size * each_mib)}{template}, the host has {format_mib(available_mib)}",
            hint=f"give at most {most}" if most else "stop something else, or do without a pool",
        )

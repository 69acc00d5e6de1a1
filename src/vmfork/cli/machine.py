"""Where the machine of a command comes from: the factory of `[factory]`, or a template of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmfork import aio
from vmfork.api.template import DEFAULT, Template
from vmfork.cli.options import prepare_image
from vmfork.cli.show import shown_progress
from vmfork.config import VMConfig, find_places
from vmfork.config.loader import ARGUMENT
from vmfork.errors import ConfigError
from vmfork.rpc.endpoint import use_server

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AsyncExitStack

    from vmfork.api.vm import VM
    from vmfork.config import CardChoice, FactoryConfig
    from vmfork.config.loader import Settings
    from vmfork.network.policy import NetworkPolicy
    from vmfork.wire.given import PlacedFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The machine that a command asks for.

    `settings` are in force for the command with its options, `factory` without them, or `None` where the factory is to
    be left alone. `cpus` and `memory_mib` are `None` where it takes what there is.
    """

    settings: Settings
    factory: FactoryConfig | None
    template: str | None
    files: Mapping[str, PlacedFile]
    cpus: int | None = None
    memory_mib: int | None = None
    network: NetworkPolicy = "none"
    allow_guest_fork: int = 0
    card: CardChoice = "none"

    @property
    def disk(self) -> int | None:
        """MiB of the disk that a machine of the template which was named is to have; `None` leaves that to it."""
        return disk_of(self.template, self.settings)

    @property
    def is_of_factory(self) -> bool:
        """Whether `[factory]` has something to ask, and names the template where the command names one."""
        config = self.factory
        if config is None:
            return False
        if self.template is not None:
            return self.template in config.template_names
        return bool(config.template_names or config.cache or config.remote)


async def take_vm(wanted: Wanted, stack: AsyncExitStack) -> VM:
    """A machine of the factory, else a fork; `stack` closes it and all that it came from."""
    if wanted.is_of_factory:
        if wanted.card != "none":
            reason = "the card of a machine of the factory leads nowhere"
            raise ConfigError("card", wanted.card, reason, hint="leave the factory alone: --no-factory")
        if asks_for_disk(wanted.settings):
            reason = "a machine of the factory has the disk that the factory says"
            raise ConfigError("disk", wanted.settings.vm.disk_mib, reason, hint="leave the factory alone: --no-factory")
        vm = await _take_from_factory(wanted, stack)
    else:
        template = await find_template(wanted.template, wanted.settings)
        vm = await template.fork(
            files=wanted.files,
            cpus=wanted.cpus,
            memory_mib=wanted.memory_mib,
            network=wanted.network,
            allow_guest_fork=wanted.allow_guest_fork,
            card=wanted.card,
            disk=wanted.disk,
        )
    return await stack.enter_async_context(vm)


def default_template_name(config: VMConfig) -> str:
    """`default`, with whatever differs from a default machine added: another image or size is another template."""
    plain = VMConfig()
    image = "" if config.image == plain.image else f"-{config.image}"
    same_size = (config.cpus, config.memory_mib) == (plain.cpus, plain.memory_mib)
    size = "" if same_size else f"-{config.cpus}c-{config.memory_mib}m"
    most = (max(config.max_cpus, config.cpus), max(config.max_memory_mib, config.memory_mib))
    room = "" if most == (config.cpus, config.memory_mib) else f"-max-{most[0]}c-{most[1]}m"
    card = "-nic" if config.nic else ""
    disk = f"-disk-{config.disk_mib}m" if config.disk_mib else ""
    return DEFAULT + image + size + room + card + disk


def asks_for_disk(settings: Settings) -> bool:
    """Whether the command was told of a disk: a template that was named may have another, or none."""
    return settings.origins["vm.disk_mib"] == ARGUMENT


def disk_of(name: str | None, settings: Settings) -> int | None:
    """MiB of the disk that a fork of the template which was named is to have, as the command was told.

    `None` leaves it to the template. A template that is built where it is missing is built with the disk.
    """
    is_named = name is not None and name != DEFAULT
    return settings.vm.disk_mib if is_named and asks_for_disk(settings) else None


async def find_template(name: str | None, settings: Settings) -> Template:
    """The template to fork. Only `default` is built when it is missing; a template that was named must exist."""
    config = settings.vm
    wanted = name or default_template_name(config)
    if name is not None and name != DEFAULT:
        return await Template.open(name, config=config)
    with shown_progress() as progress:
        await prepare_image(settings, progress)
        return await Template.ensure(wanted, config, progress=progress)


async def _take_from_factory(wanted: Wanted, stack: AsyncExitStack) -> VM:
    """A machine of the factory, which `stack` closes."""
    assert wanted.factory is not None
    # One machine is wanted: a pool is asked for where a server keeps it, and not filled here.
    config = replace(use_server(wanted.factory, find_places()), cache=0, cache_min=None)
    # A build that ended with the command would end half-way.
    fetch_only = config.build == "background"
    with shown_progress() as progress:
        if config.template and not (config.remote or fetch_only):
            await prepare_image(wanted.settings, progress)
        factory = await stack.enter_async_context(aio.Factory(config, fetch_only=fetch_only, progress=progress))
        return await factory.get_vm(
            template=wanted.template or "",
            files=wanted.files,
            cpus=wanted.cpus,
            memory_mib=wanted.memory_mib,
            network=wanted.network,
            allow_guest_fork=wanted.allow_guest_fork,
        )

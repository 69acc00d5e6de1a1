"""A template of a machine that runs on."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from vmfork.adopt.hooks import AFTER_FORK, BEFORE_FREEZE, describe_fork, find_hooks, run_hooks
from vmfork.adopt.secrets import check_secrets
from vmfork.adopt.thaw import find_watchers
from vmfork.adopt.todo import Thaw
from vmfork.config import VMConfig
from vmfork.errors import ConfigError
from vmfork.freeze.live import check_copyable, copy_into, find_unset
from vmfork.machine.emulator import find_maker
from vmfork.machine.outlet import has_no_carrier
from vmfork.store import TemplateStore
from vmfork.template.budget import make_room, stage
from vmfork.template.kept import KeptRecipe, keeping_recipe
from vmfork.template.publish import publish
from vmfork.template.recipe import Recipe
from vmfork.template.scratch import staged_disk
from vmfork.template.source import Source
from vmfork.template.travelling.persisted import follow
from vmfork.units import MIB

if TYPE_CHECKING:
    from pathlib import Path

    from vmfork.adopt.secrets import Secrets
    from vmfork.config import Instance
    from vmfork.host.copier import Copied
    from vmfork.machine.running import Running
    from vmfork.store import Staging
    from vmfork.template.scratch import StagedDisk


async def freeze_running(
    running: Running,
    name: str,
    *,
    instance: Instance,
    secrets: Secrets,
    hooks: bool,
    hook_timeout_s: float,
    replace: bool,
    persist: bool,
    wait_s: float,
) -> Source:
    """The machine as it was at one moment is in force as the template `name`, and runs on.

    The template needs neither the machine nor its template. With `hooks` those of before a freeze ran in the machine.
    With `persist` it is kept on disk too.
    Raises `TemplateExists` without `replace`, `StoreBusy`, `SecretsPresent`, `HookError`, and `HostError` when memory
    is short or the machine could not be copied. After any of them, and on cancel, the machine runs on, and what was
    there before under that name is in force.
    """
    make, memory_mib = check_copyable(running), running.hardware.memory_mib
    _check_card(running)
    await find_maker(make, places=instance.places)
    store, begun = TemplateStore(instance.places.templates), time.perf_counter()
    if replace or store.find_generation(name) is None:
        await make_room(name, memory_mib, instance=instance)
    memory_bytes = memory_mib * MIB
    async with await stage(
        store, name, memory_bytes=memory_bytes, instance=instance, replace=replace, wait_s=wait_s
    ) as staging:
        with staged_disk(running.hardware, instance) as disk:
            todo, copied = await copy_to(
                staging, running, disk, secrets=secrets, hooks=hooks, hook_timeout_s=hook_timeout_s
            )
            _check_card(running)  # a passt that is there still was there while it was copied
            timings = {"freeze_s": time.perf_counter() - begun, "pause_s": copied.pause_s}
            # Nobody can make it again; and what was made before under its name is something else.
            with keeping_recipe(name, KeptRecipe(config=VMConfig(), is_live=True), places=instance.places):
                recipe = Recipe(secrets=secrets)
                await publish(staging, running.facts, recipe, todo=todo, timings=timings, disk=disk)
    source = await Source.open(name, config=VMConfig(), instance=instance)
    await follow(source, config=VMConfig(persist=persist), instance=instance)
    return source


def _check_card(running: Running) -> None:
    """Raises `ConfigError` when QEMU's user network would be in the state that all forks are made from."""
    card = running.facts.card
    if card is not None and card.holds_user_network:
        raise ConfigError(
            "card",
            card.choice,
            f"VM {running.id} has QEMU's user network in its device state: forks of that could have no other",
            hint="freeze a fork whose card leads nowhere (card='none'), prepared with network= or by files",
        )
    if has_no_carrier(running.facts):
        raise ConfigError(
            "card",
            running.id,
            f"the passt of VM {running.id}, or of what it is a fork of, has ended, and its card has no carrier since",
            hint="freeze a fork of its template: forks of this one would have cards that carry nothing",
        )


async def copy_to(
    staging: Staging, running: Running, disk: StagedDisk, *, secrets: Secrets, hooks: bool, hook_timeout_s: float
) -> tuple[Thaw, Copied]:
    """The machine is in the staging folder, and what it wrote to its disk in `disk`.

    Gives what its forks will have to do, and what the copy took.
    """
    agent, identity = running.agent, running.facts.identity
    if hooks:
        await run_hooks(agent, await find_hooks(agent, BEFORE_FREEZE), describe_fork(identity), limit_s=hook_timeout_s)
    found = await check_secrets(agent, secrets)
    after_fork, before = await find_hooks(agent, AFTER_FORK), await find_watchers(agent)
    state_fd = _create(staging.state_path)
    try:
        copied, _ = await copy_into(
            running, memory_fd=staging.memory_fd, state_fd=state_fd, whole=True, scratch_fd=disk.fd
        )
    finally:
        os.close(state_fd)
    # One that has begun to watch between a look and the copy is found by the second look.
    watchers = sorted({*before, *await find_watchers(agent)})
    todo = Thaw(
        hooks=after_fork,
        watchers=tuple(watchers),
        secrets_found=found,
        greets=True,
        unset=find_unset(running),
    )
    return todo, copied


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

"""What machines that stand alone can go back to: kept as templates are (template/checkpoints.py)."""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmfork.adopt.secrets import Secrets
from vmfork.adopt.todo import Thaw
from vmfork.config import check_name
from vmfork.errors import ConfigError, TemplateError, TemplateExists, TemplateNotFound
from vmfork.freeze.live import check_copyable
from vmfork.freeze.point import check_owner
from vmfork.machine.emulator import find_maker
from vmfork.machine.facts import Make
from vmfork.machine.launch import Frozen
from vmfork.machine.traits import agent_reseeds
from vmfork.template.budget import stage
from vmfork.template.checkpoints import store_of
from vmfork.template.live import copy_to
from vmfork.template.publish import publish
from vmfork.template.recipe import Recipe
from vmfork.template.scratch import opened_disk, staged_disk
from vmfork.travel.fit import hardware_of
from vmfork.units import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmfork.config import Instance, Limits, Places
    from vmfork.hypervisor.base import Hardware
    from vmfork.machine.facts import Descent, MachineFacts
    from vmfork.machine.running import Running
    from vmfork.store import Manifest, TemplateStore


@dataclass(frozen=True, slots=True)
class KeptPoint:
    """A machine as it was at one moment, in a store. A value: it holds nothing open."""

    vm_id: str
    manifest: Manifest
    facts: MachineFacts
    store: TemplateStore
    places: Places

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def pause_s(self) -> float:
        return self.manifest.timings["pause_s"]

    @property
    def is_closed(self) -> bool:
        return False

    @property
    def memory_bytes(self) -> int:
        return self.manifest.memory_allocated_bytes

    @property
    def make(self) -> Make:
        m, made = self.manifest, self.facts.make
        assert made is not None  # of no other machine can there be one
        return Make(
            traits=m.traits,
            qemu_path=m.qemu_path,
            qemu_stamp=m.qemu_stamp,
            agent_protocol=m.agent_protocol,
            agent_version=m.agent_version,
            agent_capabilities=m.agent_capabilities,
            policy=made.policy,
        )

    @property
    def hardware(self) -> Hardware:
        return hardware_of(self.manifest)

    @contextmanager
    def open(self, *, limits: Limits, descent: Descent) -> Iterator[Frozen]:
        """Raises what `TemplateStore.open` raises."""
        m = self.manifest
        with self.store.open(m.name, generation=m.generation) as opened, opened_disk(m, self.places) as scratch_fd:
            yield Frozen(
                template=self.facts.identity.template,
                image=m.image,
                hardware=self.hardware,
                memory_fd=opened.memory_fd,
                is_live=True,
                state_fd=opened.state_fd,
                thaw=Thaw(hooks=m.hooks, watchers=m.watchers, greets=True, unset=m.unset),
                reseed=agent_reseeds(m.traits["reseed"]),
                limits=limits,
                make=self.make,
                descent=descent,
                scratch_fd=scratch_fd,
            )

    def check(self, vm_id: str) -> None:
        check_owner(self, vm_id)
        with self.store.open(self.name, generation=self.manifest.generation):
            pass

    def close(self) -> None:
        pass

    async def remove(self) -> None:
        with suppress(TemplateNotFound):
            await self.store.remove(self.name)


async def keep_point(
    running: Running, name: str, *, instance: Instance, hooks: bool, hook_timeout_s: float
) -> KeptPoint:
    """The machine as it is now is kept under `name`, or else the next number; it runs on.

    Raises `ConfigError` when it has one of that name, and what `freeze_running` raises.
    """
    make, memory_mib = check_copyable(running), running.hardware.memory_mib
    await find_maker(make, places=instance.places)
    store = store_of(running.id, instance.places)
    name = check_name(name) if name else _next_number(store)
    begun = time.perf_counter()
    try:
        async with await stage(store, name, memory_bytes=memory_mib * MIB, instance=instance) as staging:
            with staged_disk(running.hardware, instance) as disk:
                todo, copied = await copy_to(
                    staging, running, disk, secrets=Secrets(), hooks=hooks, hook_timeout_s=hook_timeout_s
                )
                if not hooks:
                    todo = replace(todo, hooks=())
                timings = {"freeze_s": time.perf_counter() - begun, "pause_s": copied.pause_s}
                await publish(staging, running.facts, Recipe(), todo=todo, timings=timings, disk=disk)
    except TemplateExists as error:
        reason = f"VM {running.id} has a checkpoint {name!r}"
        raise ConfigError("name", name, reason, hint="remove it first, or take another name") from error
    return find_point(running.id, running.facts, name, places=instance.places)


def list_points(vm_id: str, facts: MachineFacts, *, places: Places) -> Sequence[KeptPoint]:
    """What is kept of the machine, the oldest first. What is damaged is left out."""
    store, found = store_of(vm_id, places), []
    for name in store.list_names():
        with suppress(TemplateError):
            found.append(KeptPoint(vm_id, store.read_manifest(name), facts, store, places))
    return sorted(found, key=lambda each: (each.manifest.created_at, _number(each.name), each.name))


def find_point(vm_id: str, facts: MachineFacts, name: str, *, places: Places) -> KeptPoint:
    """The one of that name, or else the last. Raises `ConfigError` when there is none."""
    points = list_points(vm_id, facts, places=places)
    found = [point for point in points if name in ("", point.name)]
    if found:
        return found[-1]
    have = ", ".join(point.name for point in points) or "none"
    reason = f"VM {vm_id} has no checkpoint {name!r}" if name else f"VM {vm_id} has no checkpoint"
    raise ConfigError("checkpoint", name, reason, hint=f"it has: {have}")


def _next_number(store: TemplateStore) -> str:
    return str(max((_number(name) for name in store.list_names()), default=0) + 1)


def _number(name: str) -> int:
    return int(name) if name.isdecimal() else 0

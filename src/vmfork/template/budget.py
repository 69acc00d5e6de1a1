"""The memory that templates hold together stays within a budget: the one that was used least recently goes first."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from vmfork.errors import HostError, StoreBusy, TemplateError, TemplateNotFound
from vmfork.host.thread import in_thread
from vmfork.image import DiskStore
from vmfork.machine.folder import list_records
from vmfork.progress import Progress
from vmfork.store import TemplateStore
from vmfork.store.layers import LayerStore
from vmfork.template.kept import find_recipe
from vmfork.units import MIB, format_mib

if TYPE_CHECKING:
    from vmfork.config import Instance
    from vmfork.store import Staging


@dataclass(frozen=True, slots=True)
class Holding:
    """A template, the memory it holds, when it was last forked (s since 1970), and whether it may go.

    One that `is_free` no machine is a fork of, and the budget does not name; it may go where it can be built again.
    """

    name: str
    mib: int
    used_at: float
    is_free: bool
    may_go: bool


async def stage(
    store: TemplateStore,
    name: str,
    *,
    memory_bytes: int,
    instance: Instance,
    replace: bool = False,
    wait_s: float = 0.0,
) -> Staging:
    """As `store.stage`. Where the host has too little memory for it, layers of recipes went."""
    make = partial(store.stage, name, memory_bytes=memory_bytes, replace=replace, wait_s=wait_s)
    return await LayerStore.of(instance.places).giving_way(make)


async def make_room(name: str, need_mib: int, *, instance: Instance) -> None:
    """The templates leave `need_mib` MiB of the budget to `name`. Those that were used least recently went for it.

    A template stays that the budget names, that a machine is a fork of, or that could not be built again as it was.
    Its recipe is kept, so that whoever may build it makes it again. Raises `HostError`, with the arithmetic, when those
    that may go are not enough; none is gone then.
    """
    budget = instance.budget
    if not budget.mib:
        return
    others = [each for each in list_holdings(instance) if each.name != name]
    over_mib = sum(each.mib for each in others) + need_mib - budget.mib
    going: list[Holding] = []
    for each in sorted(others, key=lambda each: each.used_at):
        if over_mib - sum(gone.mib for gone in going) > 0 and each.may_go:
            going.append(each)
    if over_mib > sum(each.mib for each in going):
        staying = ", ".join(f"{each.name} ({format_mib(each.mib)})" for each in others if each not in going)
        raise HostError(
            f"template {name!r} needs {format_mib(need_mib)} of a budget of {format_mib(budget.mib)}, "
            + (f"of which others hold more than may go: {staying}" if staying else "which is less"),
            hint="raise `budget_mib` in [factory], remove a template (vmfork template rm), or give the VM less memory",
        )
    for each in going:
        step = f"removing {each.name!r}, the one least recently used, for a budget of {format_mib(budget.mib)}"
        instance.progress(Progress(task="template", step=step))
        with suppress(TemplateNotFound, StoreBusy):
            await TemplateStore(instance.places.templates).remove(each.name)
    if going:
        await in_thread(lambda _: DiskStore(instance.places.disks).sweep())


def list_holdings(instance: Instance) -> list[Holding]:
    """What can be read; a template that cannot be is nobody's loss, and is replaced when it is built."""
    store, found = TemplateStore(instance.places.templates), []
    forked = {record.template for record in list_records(instance.places.vms)}
    for name in store.list_names():
        with suppress(TemplateError, StoreBusy):
            mib = -(-store.read_manifest(name).memory_allocated_bytes // MIB)
            is_free = name not in forked and name not in instance.budget.keep
            may_go = is_free and _can_be_rebuilt(name, instance)
            found.append(Holding(name, mib, store.find_last_use(name), is_free, may_go))
    return found


def _can_be_rebuilt(name: str, instance: Instance) -> bool:
    try:
        kept = find_recipe(name, places=instance.places)
    except TemplateError:
        return False
    return kept is not None and kept.is_followable

"""What the templates of a factory are good for now, and what they save."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmfork.errors import TemplateCorrupt, TemplateNotFound, TemplateStale, VMForkError
from vmfork.factory.choice import Choice, Miss, Oversize, Want, choose
from vmfork.factory.template import TemplateFactory, check_recipe, find_own_recipe
from vmfork.image import ImageStore
from vmfork.machine.folder import list_records
from vmfork.machine.use import measure_memory
from vmfork.template.kept import find_recipe
from vmfork.template.source import Source

if TYPE_CHECKING:
    from vmfork.config import FactoryConfig, Instance
    from vmfork.factory.kind import Kind
    from vmfork.machine.folder import VMRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateStatus:
    """One template: whether it can be forked here (`on`), else why not (`code` of the error, `reason`).

    `requests` is what becomes of a request of the configuration: `exact`, `grown` or `larger` when it is forked,
    `built` when it waits for a build, else `booted` or `refused`. `differs` names what the template differs in. `forks`
    are alive, whoever made them. They read `memory_shared_bytes` from the template's pages, each fork counted, and
    would take `memory_saved_bytes` more without sharing.
    """

    on: bool
    template: str
    code: str = ""
    reason: str = ""
    generation: str = ""
    created_at: str = ""
    image: str = ""
    cpus: int = 0
    memory_mib: int = 0
    memory_allocated_bytes: int = 0
    fingerprint: str = ""
    requests: str = ""
    differs: tuple[str, ...] = ()
    forks: int = 0
    memory_shared_bytes: int = 0
    memory_saved_bytes: int = 0


async def find_statuses(config: FactoryConfig, *, instance: Instance) -> tuple[TemplateStatus, ...]:
    """A status of each template that the configuration names, its own first. Nothing is built or changed."""
    return tuple([await _find_status(name, config, instance) for name in config.template_names])


async def _find_status(name: str, config: FactoryConfig, instance: Instance) -> TemplateStatus:
    is_own = config.template and name == config.template_name
    try:
        source = await Source.open(name, config=config.vm, instance=instance)
        if is_own and (recipe := find_own_recipe(config)) is not None:
            check_recipe(source, recipe)
    except VMForkError as error:
        requests = _become_without(error, name, config, instance)
        return TemplateStatus(on=False, template=name, code=error.code, reason=error.message, requests=requests)
    m, base = source.manifest, TemplateFactory(source, config.vm, instance)
    # Who asks for nothing in particular gets the machines as they are.
    asked = base.kind.to_config(config.vm) if config.vm.is_plain else config.vm
    want = Want.of(asked, images=ImageStore(instance.places.images), like=base if config.vm.is_plain else None)
    found = choose([base], want, oversize=config.oversize == "allow")
    forks, shared = await asyncio.to_thread(_read_forks, name, instance)
    return TemplateStatus(
        on=True,
        template=name,
        generation=m.generation,
        created_at=m.created_at,
        image=m.image,
        cpus=m.cpus,
        memory_mib=m.memory_mib,
        memory_allocated_bytes=m.memory_allocated_bytes,
        fingerprint=m.fingerprint,
        requests=_become(found, base.kind, config),
        differs=() if want.like else _find_differences(base.kind, want),
        forks=forks,
        memory_shared_bytes=shared,
        # The pages themselves are there once, however many read them.
        memory_saved_bytes=max(0, shared - m.memory_allocated_bytes),
    )


def _become(found: Choice | Miss, kind: Kind, config: FactoryConfig) -> str:
    if isinstance(found, Choice):
        return found.match
    if isinstance(found, Oversize):
        refused = config.oversize == "refuse" or config.fallback == "refuse"
    else:
        refused = config.fallback == "refuse" or (config.fallback == "auto" and kind.is_warmed)
    return "refused" if refused else "booted"


def _become_without(error: VMForkError, name: str, config: FactoryConfig, instance: Instance) -> str:
    """What becomes of requests while the template `name` cannot be forked, because of `error`."""
    is_own, mendable = (
        config.template and name == config.template_name,
        (TemplateNotFound, TemplateStale, TemplateCorrupt),
    )
    if is_own and config.build == "now":
        return "built" if isinstance(error, mendable) else "refused"
    if not is_own and config.missing == "refuse":
        return "refused"
    refused = config.fallback == "refuse" or (config.fallback == "auto" and _was_warmed(name, instance))
    return "refused" if refused else "booted"


def _was_warmed(name: str, instance: Instance) -> bool:
    try:
        kept = find_recipe(name, places=instance.places)
    except TemplateCorrupt:
        return True  # nobody knows any more
    return kept is not None and bool(kept.name)


def _find_differences(kind: Kind, want: Want) -> tuple[str, ...]:
    """All in which the template is not what the configuration asks for, sizes included."""
    have, config = kind.hardware, want.config
    sizes = [key for key in ("cpus", "memory_mib") if getattr(have, key) != getattr(config, key)]
    sizes += [key for key in ("max_cpus", "max_memory_mib") if getattr(have, key) < getattr(config, key)]
    image = ["image"] if kind.image != config.image else []
    return (*image, *sizes, *(trait for trait in want.find_differences(kind) if trait != "image"))


def _read_forks(template: str, instance: Instance) -> tuple[int, int]:
    """How many forks of the template are alive, and the bytes of their RAM that are the template's pages."""
    records = [record for record in list_records(instance.places.vms) if record.template == template]
    return len(records), sum(_read_shared(record) for record in records)


def _read_shared(record: VMRecord) -> int:
    with suppress(OSError):  # it has ended
        return measure_memory(record.facts, record.pid).guest_base
    return 0

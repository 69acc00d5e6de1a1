"""Templates that are kept on disk too: a reboot takes their memory, and their first use brings it back.

```
HOME/persisted/NAME.tar    what `template save` writes, 0600, synced; gone when NAME is removed
```
A name that is persisted stays so: what replaces it is written in its place. What is there at a moment is whole, and is
what the name stood for last, or before that where the host went down in between. It takes its place while the name
cannot be removed or replaced, and only if the name still stands for it.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from vmfork.errors import ArtifactError, TemplateError, TemplateExists, TemplateNotFound, TemplateStale
from vmfork.host import facts
from vmfork.host.folders import make_private
from vmfork.host.lock import locked_folder
from vmfork.progress import Progress
from vmfork.store import TemplateStore
from vmfork.template.removal import REVIVAL_LIMIT_S, locate_persisted
from vmfork.template.source import Source
from vmfork.template.travelling.arrival import Target, load_template
from vmfork.template.travelling.disks import hold_disks
from vmfork.travel.sending import save_template

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmfork.config import Instance, VMConfig
    from vmfork.travel.saved import Saved


async def persist(source: Source, *, instance: Instance) -> Saved:
    """The template is on disk, and comes back from there after a reboot. Raises what `save_template` raises.

    That is `TemplateNotFound` too when it was removed or replaced meanwhile: nothing of it is left on disk then.
    """
    m = source.manifest
    make_private(instance.places.persisted)
    path = locate_persisted(m.name, instance.places)
    store = TemplateStore(instance.places.templates)

    @contextmanager
    def appearing() -> Iterator[None]:
        with store.kept_in_force(m.name, m.generation):
            hold_disks(m, path, instance)  # before: one whose disks are gone could never be loaded
            yield
            hold_disks(m, path, instance)  # again: a user that was not there yet may have been swept

    return await save_template(
        m.name, path, generation=m.generation, instance=instance, durable=True, appearing=appearing
    )


async def follow(source: Source, *, config: VMConfig, instance: Instance) -> None:
    """A template that has just been published is persisted where `config` says so, or its predecessor was.

    One that was replaced meanwhile is not: who replaced it sees to what is kept.
    """
    m = source.manifest
    if not config.persist and not locate_persisted(m.name, instance.places).exists():
        return
    try:
        await persist(source, instance=instance)
    except TemplateNotFound:
        if TemplateStore(instance.places.templates).find_generation(m.name) in (None, m.generation):
            raise


async def open_template(name: str, *, config: VMConfig, instance: Instance) -> Source:
    """As `Source.open`. A template that is on disk alone is brought back first, in the time of a copy.

    Raises `TemplateUnfit` too, when that does not fit this host any more, and `ArtifactError` when it is damaged.
    """
    try:
        return await Source.open(name, config=config, instance=instance)
    except TemplateNotFound:
        is_old = False
    except TemplateStale as error:
        if error.field != "host.boot_id":
            raise
        is_old = True
    if not locate_persisted(name, instance.places).exists():
        return await Source.open(name, config=config, instance=instance)  # raises the same
    async with locked_folder(instance.places.persisted, wait_s=REVIVAL_LIMIT_S):
        await _revive(name, config=config, instance=instance, is_old=is_old)
    return await Source.open(name, config=config, instance=instance)


async def bring_back(name: str, config: VMConfig, *, instance: Instance) -> None:
    """A template that is on disk alone is in memory, if it is whole and fits this host."""
    if locate_persisted(name, instance.places).exists():
        with suppress(TemplateError, ArtifactError):
            await open_template(name, config=config, instance=instance)


async def _revive(name: str, *, config: VMConfig, instance: Instance, is_old: bool) -> None:
    """The template is in memory. The caller holds the lock of all that are kept: another may have done it before.

    Or have removed it: nothing happens then.
    """
    store, path = TemplateStore(instance.places.templates), locate_persisted(name, instance.places)
    if not path.exists():
        return
    if is_old:
        with suppress(TemplateNotFound, TemplateStale):
            if store.read_manifest(name).host_boot_id == facts.boot_id():
                return
        with suppress(TemplateNotFound):
            await store.remove(name)
    instance.progress(Progress(task="template", step=f"bringing back {name!r} from {path}"))
    with suppress(TemplateExists):
        target = Target(instance=instance, config=config, name=name, wait_s=REVIVAL_LIMIT_S, is_ours=True)
        await load_template(path, target)

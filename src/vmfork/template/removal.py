"""A template removed, with all that is kept of it: where that is, and what no other template has."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING

from vmfork.config import NAME, check_name
from vmfork.errors import StoreBusy, TemplateError, TemplateNotFound
from vmfork.host.folders import list_folder
from vmfork.host.lock import locked_folder
from vmfork.host.thread import in_thread
from vmfork.image import DiskStore
from vmfork.store import TemplateStore
from vmfork.store.layers import LayerStore

if TYPE_CHECKING:
    from pathlib import Path

    from vmfork.config import Places


# Another process may bring one back, of any size, from a slow disk.
REVIVAL_LIMIT_S = 600.0


async def remove_template(name: str, *, places: Places) -> None:
    """No template of this name exists, in memory or on disk, nor a recipe of it, nor layers of it alone.

    Forks made from it run on. Whoever brings one back from disk meanwhile is waited for. Raises `StoreBusy`, and
    `TemplateNotFound`, after which no recipe is kept either.
    """
    was_persisted, layers = locate_persisted(name, places).exists(), find_layers(name, places=places)
    async with locked_folder(places.persisted, wait_s=REVIVAL_LIMIT_S) if was_persisted else nullcontext():
        try:
            await TemplateStore(places.templates).remove(name)
        except TemplateNotFound:
            _forget(name, places)
            if not was_persisted:
                raise
        _forget(name, places)
    await in_thread(lambda _: DiskStore(places.disks).sweep())
    if not layers:
        return
    others = TemplateStore(places.templates).list_names()
    used = {layer for other in others for layer in find_layers(other, places=places)}
    for layer in layers:
        if layer not in used:
            await LayerStore.of(places).remove(layer)


def _forget(name: str, places: Places) -> None:
    for path in (locate_recipe(name, places), locate_persisted(name, places)):
        path.unlink(missing_ok=True)


def find_layers(name: str, *, places: Places) -> tuple[str, ...]:
    """The layers that the template was made by; none where there is no template that can be read."""
    with suppress(TemplateError, StoreBusy):
        return TemplateStore(places.templates).read_manifest(name).layers
    return ()


def locate_persisted(name: str, places: Places) -> Path:
    """Where the template is on disk, if it is (template/travelling/persisted.py)."""
    return places.persisted / f"{check_name(name)}.tar"


def list_persisted(places: Places) -> list[str]:
    """The names of the templates that are on disk, sorted, whether or not they are in memory now."""
    kept = [path for path in list_folder(places.persisted) if path.suffix == ".tar"]
    return [path.stem for path in kept if NAME.fullmatch(path.stem)]


def locate_recipe(name: str, places: Places) -> Path:
    """Where it is kept how the template was made (template/kept.py)."""
    return places.recipes / f"{check_name(name)}.json"

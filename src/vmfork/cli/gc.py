"""`vmfork gc`: what killed processes left is removed, and shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmfork.cli.loop import run_async
from vmfork.cli.options import json_option
from vmfork.cli.show import show_json
from vmfork.config import find_places
from vmfork.image import DiskStore, ImageStore
from vmfork.machine.folder import find_strangers, find_waste, forget_ended, is_stuck, sweep_vms
from vmfork.store import TemplateStore
from vmfork.store.layers import LayerStore
from vmfork.template import checkpoints
from vmfork.units import format_count

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vmfork.config import Places


@click.command("gc")
@click.option("-n", "--dry-run", is_flag=True, help="Show what would be removed. Nothing is.")
@click.option("--layers", "all_layers", is_flag=True, help="Remove the layers too that builds of templates go on from.")
@json_option
def command(dry_run: bool, all_layers: bool, as_json: bool) -> None:
    """Remove what killed processes left, and show it.

    Machines without an owner, half-built templates and images: other commands remove them too, as they go. What lies
    beside them and is not vmfork's is named, and never touched. A machine stays whose control group another process
    is in, and is named.
    """
    places = find_places()
    store = LayerStore.of(places)
    layers = [places.layers / layer.name for layer in store.list_all()] if all_layers else []
    waste, left = _find_waste(places, layers), _find_strangers(places)
    if not dry_run:
        _sweep(places)
        if all_layers:
            run_async(store.remove_all())
    kept = [path for path in waste if is_stuck(path)]
    waste = [path for path in waste if path not in kept and (dry_run or not path.exists())]
    if as_json:
        told = {"removed": waste, "kept": kept, "left": left}
        show_json({"dry_run": dry_run} | {key: [*map(str, paths)] for key, paths in told.items()})
        return
    verb = "would remove" if dry_run else "removed"
    for path in waste:
        click.echo(f"{verb} {path}")
    click.echo(f"{verb} {format_count(len(waste), 'folder')}")
    for path in kept:
        click.echo(f"note: kept, a process of others is in its control group: {path}", err=True)
    for path in left:
        click.echo(f"note: left alone, not vmfork's: {path}", err=True)


def _find_waste(places: Places, layers: Sequence[Path]) -> list[Path]:
    """What a sweep removes, and these layers, with the disks that nothing else needs."""
    stores = TemplateStore(places.templates), TemplateStore(places.layers), ImageStore(places.images)
    found = [path for store in stores for path in store.find_waste()]
    found = [*find_waste(places.vms), *found, *checkpoints.find_waste(places), *layers]
    return [*found, *DiskStore(places.disks).find_waste(without=frozenset(found))]


def _find_strangers(places: Places) -> list[Path]:
    templates = TemplateStore(places.templates), TemplateStore(places.layers)
    stores = *templates, ImageStore(places.images), DiskStore(places.disks)
    return [*find_strangers(places.vms), *(path for store in stores for path in store.find_strangers())]


def _sweep(places: Places) -> None:
    sweep_vms(places.vms)
    forget_ended(places.vms)
    checkpoints.sweep(places)
    for folder in (places.templates, places.layers):
        TemplateStore(folder).sweep()
    ImageStore(places.images).sweep()
    DiskStore(places.disks).sweep()

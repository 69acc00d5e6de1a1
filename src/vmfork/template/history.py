"""How a template was made: its steps, what each took, and what of it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmfork.store import TemplateStore
from vmfork.store.layers import Layer, LayerStore
from vmfork.store.manifest import DoneStep
from vmfork.template.removal import find_layers

if TYPE_CHECKING:
    from vmfork.config import Places


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedStep(DoneStep):
    """A step, and other templates made by its layer.

    `mib` is the memory that the layer takes, 0 where none is kept, and `disk_mib` the space of what is on its disk.
    """

    mib: int = 0
    disk_mib: int = 0
    shared_with: tuple[str, ...] = ()


def trace_steps(name: str, *, places: Places) -> list[TracedStep]:
    """The steps of the template in their order. Raises `TemplateNotFound`, and what cannot be read of it."""
    store = TemplateStore(places.templates)
    manifest, names = store.read_manifest(name), store.list_names()
    layers_of = {other: find_layers(other, places=places) for other in names if other != name}
    kept = {layer.name: layer for layer in LayerStore.of(places).list_all()}
    none = Layer("", 0, 0.0)
    return [
        TracedStep(
            step=step.step,
            took_s=step.took_s,
            layer=step.layer,
            reused=step.reused,
            mib=kept.get(step.layer, none).mib,
            disk_mib=kept.get(step.layer, none).disk_mib,
            shared_with=tuple(other for other, layers in layers_of.items() if step.layer and step.layer in layers),
        )
        for step in manifest.steps
    ]

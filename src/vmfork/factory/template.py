"""Forks every machine from one template."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from vmfork.errors import TemplateCorrupt
from vmfork.factory.kind import Kind
from vmfork.template.build import ensure_template
from vmfork.template.kept import find_recipe
from vmfork.template.source import Source

if TYPE_CHECKING:
    from vmfork.config import Instance, VMConfig
    from vmfork.machine.base import BaseVM
    from vmfork.template.kept import KeptRecipe

_BUILD_WAIT_S = 600.0


class TemplateFactory:
    """A template that was found whole. Holds nothing open; closing it leaves the template in place."""

    def __init__(self, source: Source, config: VMConfig, instance: Instance) -> None:
        self._source = source
        self._config = config
        self._instance = instance
        self.kind = _kind_of(source)
        self._recipe = _read_recipe(source, instance)

    @classmethod
    async def fetch(cls, name: str, config: VMConfig, *, instance: Instance) -> Self:
        """A factory over the template that is there. `TemplateNotFound`, `TemplateStale`, `TemplateCorrupt`."""
        return cls(await Source.open(name, config=config, instance=instance), config, instance)

    @classmethod
    async def ensure(cls, name: str, config: VMConfig, *, instance: Instance) -> Self:
        """A factory over the template that is there, or that was built; of several builders, one does it.

        A `config` that asks for nothing in particular takes a template as it is, and builds it as it was made before.
        """
        return cls(await _ensure(name, config, instance), config, instance)

    async def refresh(self) -> None:
        """The template in force now is forked. Errors are those of `fetch`."""
        self._follow(await self._source.renew())

    async def rebuild(self) -> None:
        """The template is there and fits, made as it was made before, here or by another process.

        Raises `TemplateNotFound` when that needs what was not kept, and what building raises.
        """
        self._follow(await _ensure(self._source.manifest.name, self._config, self._instance, self._recipe))

    async def get_base_vm(self, *, timeout_s: float | None = None) -> BaseVM:
        """A fork that was not adopted yet. `TemplateNotFound` when the template was removed meanwhile."""
        await self.refresh()
        return await self._source.fork_base()

    async def aclose(self) -> None:
        """Nothing is held; the template stays."""

    def _follow(self, source: Source) -> None:
        if source is not self._source:
            self._source = source
            self.kind = _kind_of(source)
            self._recipe = _read_recipe(source, self._instance)


async def _ensure(name: str, config: VMConfig, instance: Instance, kept: KeptRecipe | None = None) -> Source:
    return await ensure_template(
        name, config, instance=instance, wait_s=_BUILD_WAIT_S, kept=kept, any_kind=config.is_plain
    )


def _read_recipe(source: Source, instance: Instance) -> KeptRecipe | None:
    # Read while the template is there: removing it removes its recipe as well.
    try:
        return find_recipe(source.manifest.name, places=instance.places)
    except TemplateCorrupt:
        return None  # it can be forked all the same, and is told when it has to be built again


def _kind_of(source: Source) -> Kind:
    m = source.manifest
    return Kind(
        name=f"template {m.name!r}",
        image=m.image,
        traits=m.traits,
        hardware=source.hardware,
        generation=m.generation,
        shares_memory=True,
        where="template",
        template=m.name,
    )

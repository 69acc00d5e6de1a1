"""Forks every machine from one template."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from vmfork.factory.kind import Kind
from vmfork.template.build import build_template, ensure_template
from vmfork.template.source import Source

if TYPE_CHECKING:
    from vmfork.config import Instance, VMConfig
    from vmfork.machine.base import BaseVM

_BUILD_WAIT_S = 600.0


class TemplateFactory:
    """A template that was found whole. Holds nothing open; closing it leaves the template in place."""

    def __init__(self, source: Source, config: VMConfig, instance: Instance) -> None:
        self._source = source
        self._config = config
        self._instance = instance
        self.kind = _kind_of(source)

    @classmethod
    async def create(cls, name: str, config: VMConfig, *, instance: Instance) -> Self:
        """A factory over a template that was built for it. `TemplateExists` when there is one already."""
        return cls(await build_template(name, config, instance=instance), config, instance)

    @classmethod
    async def fetch(cls, name: str, config: VMConfig, *, instance: Instance) -> Self:
        """A factory over the template that is there. `TemplateNotFound`, `TemplateStale`, `TemplateCorrupt`."""
        return cls(await Source.open(name, config=config, instance=instance), config, instance)

    @classmethod
    async def ensure(cls, name: str, config: VMConfig, *, instance: Instance) -> Self:
        """A factory over the template that is there, or that was built; of several builders, one does it."""
        return cls(await _ensure(name, config, instance), config, instance)

    async def refresh(self) -> None:
        """The template in force now is forked. Errors are those of `fetch`."""
        self._source = await self._source.renew()
        self.kind = _kind_of(self._source)

    async def get_base_vm(self, *, timeout_s: float | None = None) -> BaseVM:
        """A fork that was not adopted yet. `TemplateNotFound` when the template was removed meanwhile."""
        await self.refresh()
        return await self._source.fork_base()

    async def aclose(self) -> None:
        """Nothing is held; the template stays."""


class BuiltTemplateFactory(TemplateFactory):
    """A template that is built again where it is gone, or does not fit any more."""

    async def rebuild(self) -> None:
        """The template is there and fits, built here or by another process; `kind` is that of today."""
        self._source = await _ensure(self._source.manifest.name, self._config, self._instance)
        self.kind = _kind_of(self._source)


async def _ensure(name: str, config: VMConfig, instance: Instance) -> Source:
    return await ensure_template(name, config, instance=instance, wait_s=_BUILD_WAIT_S)


def _kind_of(source: Source) -> Kind:
    m = source.manifest
    return Kind(
        name=f"template {m.name!r}",
        image=m.image,
        traits=m.traits,
        hardware=source.hardware,
        generation=m.generation,
        shares_memory=True,
    )

"""Forks every machine from one template."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from vmfork.errors import TemplateExists
from vmfork.factory.kind import Kind
from vmfork.store import TemplateStore
from vmfork.template import Template

if TYPE_CHECKING:
    from vmfork.config import Places, VMConfig
    from vmfork.machine.base import BaseVM
    from vmfork.progress import ProgressListener

_BUILD_WAIT_S = 600.0


class TemplateFactory:
    """A template that was found whole. Holds nothing open; closing it leaves the template in place."""

    def __init__(self, template: Template, config: VMConfig, places: Places) -> None:
        self._template = template
        self.kind = _kind_of(template)
        self._config = config
        self._places = places

    @classmethod
    async def create(cls, name: str, config: VMConfig, *, places: Places, progress: ProgressListener) -> Self:
        """A factory over a template that was built for it. `TemplateExists` when there is one already."""
        return cls(await Template.build(name, config, progress=progress, places=places), config, places)

    @classmethod
    async def fetch(cls, name: str, config: VMConfig, *, places: Places) -> Self:
        """A factory over the template that is there. `TemplateNotFound`, `TemplateStale`, `TemplateCorrupt`."""
        return cls(await Template.open(name, config=config, places=places), config, places)

    @classmethod
    async def ensure(cls, name: str, config: VMConfig, *, places: Places, progress: ProgressListener) -> Self:
        """A factory over the template that is there, or that was built; of several builders, one does it."""
        try:
            template = await Template.build(
                name, config, wait_s=_BUILD_WAIT_S, progress=progress, places=places, replace=False
            )
        except TemplateExists:
            template = await Template.ensure(name, config, progress=progress, places=places)
        return cls(template, config, places)

    async def refresh(self) -> None:
        """The template in force now is forked. Errors are those of `fetch`."""
        current = TemplateStore(self._places.templates).find_generation(self._template.name)
        if current != self._template.generation:
            self._template = await Template.open(self._template.name, config=self._config, places=self._places)
            self.kind = _kind_of(self._template)

    async def get_base_vm(self, *, timeout_s: float | None = None) -> BaseVM:
        """A fork that was not adopted yet. `TemplateNotFound` when the template was removed meanwhile."""
        await self.refresh()
        return await self._template.fork_base()

    async def aclose(self) -> None:
        """Nothing is held; the template stays."""


def _kind_of(template: Template) -> Kind:
    return Kind(
        name=f"template {template.name!r}",
        image=template.manifest.image,
        traits=template.manifest.traits,
        hardware=template.hardware,
        generation=template.generation,
        shares_memory=True,
    )

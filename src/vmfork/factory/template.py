"""Forks every machine from one template."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from vmfork.template import Template

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmfork.config import FactoryConfig, Places
    from vmfork.progress import ProgressListener
    from vmfork.vm.base import BaseVM


class TemplateFactory:
    """A template that was found whole. Holds nothing open; closing it leaves the template in place."""

    def __init__(self, template: Template) -> None:
        self._template = template

    @classmethod
    async def create(cls, config: FactoryConfig, *, places: Places, progress: ProgressListener) -> Self:
        """A factory over a template that was built for it. `TemplateExists` when there is one already."""
        template = await Template.build(config.template_name, config.vm, progress=progress, places=places)
        return cls(template)

    @classmethod
    async def fetch(cls, config: FactoryConfig, *, places: Places) -> Self:
        """A factory over the template that is there. `TemplateNotFound`, `TemplateStale`, `TemplateCorrupt`."""
        return cls(await Template.open(config.template_name, config=config.vm, places=places))

    @property
    def traits(self) -> Mapping[str, str]:
        return self._template.manifest.traits

    @property
    def cpus(self) -> int:
        return self._template.manifest.cpus

    @property
    def memory_mib(self) -> int:
        return self._template.manifest.memory_mib

    async def get_base_vm(self) -> BaseVM:
        """A fork that was not adopted yet. `TemplateNotFound` when the template was replaced or removed meanwhile."""
        return await self._template.fork_base()

    async def aclose(self) -> None:
        """Nothing is held; the template stays."""

"""Forks every machine from one template."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from vmfork.errors import TemplateCorrupt, TemplateError, TemplateNotFound, TemplateStale
from vmfork.factory.kind import Kind
from vmfork.template.build import ensure_template
from vmfork.template.kept import find_recipe
from vmfork.template.names import name_done
from vmfork.template.recipe_file import read_recipe
from vmfork.template.travelling.persisted import open_template

if TYPE_CHECKING:
    from vmfork.config import FactoryConfig, Instance, VMConfig
    from vmfork.machine.base import BaseVM
    from vmfork.template.kept import KeptRecipe
    from vmfork.template.recipe import Recipe
    from vmfork.template.source import Source

# Another process that builds the template is waited for this long.
_BUILD_WAIT_S = 600.0


def find_own_recipe(config: FactoryConfig) -> Recipe | None:
    """How the factory's own template is to be made, if `config` names a recipe file. Raises `ConfigError`."""
    return read_recipe(Path(config.recipe)) if config.recipe else None


def check_recipe(source: Source, wanted: Recipe) -> None:
    """Raises `TemplateStale` when the template was made by another recipe."""
    if source.recipe != wanted.name:
        error = TemplateStale(source.manifest.name, "recipe", source.recipe or "none", wanted.name)
        error.hint = "make it by the recipe that [factory] names: vmfork factory init --ensure"
        raise error


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """How a template was made the last time: the name that `Kind.recipe` would have, and the configuration."""

    recipe: str
    config: VMConfig | None = None


def find_past(name: str, *, instance: Instance) -> Past | None:
    """How the template `name` was made the last time, or `None` when nothing is known of it."""
    try:
        kept = find_recipe(name, places=instance.places)
    except TemplateCorrupt:
        return Past(recipe="unreadable")  # there was one: machines that were only booted are not the same
    if kept is None:
        return None
    return Past(recipe=kept.name, config=kept.config)


class TemplateFactory:
    """A template that was found whole. Holds nothing open; closing it leaves the template in place."""

    def __init__(
        self,
        source: Source,
        config: VMConfig,
        instance: Instance,
        *,
        recipe: Recipe | None = None,
        any_kind: bool = False,
    ) -> None:
        self._recipe = recipe
        self._any_kind = any_kind
        self._source = source
        self._config = config
        self._instance = instance
        self.kind = _kind_of(source)
        self._kept = _read_kept(source, instance)

    @classmethod
    async def fetch(cls, name: str, config: VMConfig, *, instance: Instance, recipe: Recipe | None = None) -> Self:
        """A factory over the existing template. Raises `TemplateNotFound`, `TemplateStale`, `TemplateCorrupt`.

        With `recipe`, a template that another recipe made is stale.
        """
        found = cls(await open_template(name, config=config, instance=instance), config, instance, recipe=recipe)
        found._check_recipe()
        return found

    @classmethod
    async def ensure(cls, name: str, config: VMConfig, *, instance: Instance, recipe: Recipe | None = None) -> Self:
        """A factory over the existing template, or one that was built. Of several builders, one does it.

        A `config` that asks for nothing in particular takes a template as it is, and builds it as it was made before.
        With `recipe` the template was made by that recipe.
        """
        any_kind = config.is_plain
        source = await _ensure(name, config, instance, any_kind=any_kind, recipe=recipe)
        return cls(source, config, instance, recipe=recipe, any_kind=any_kind)

    @classmethod
    async def restore(cls, name: str, config: VMConfig, *, instance: Instance) -> Self:
        """A factory over the existing template, or one that was made again as it was made before.

        Raises what `fetch` raises when nothing is known of how it was made.
        """
        try:
            source = await open_template(name, config=config, instance=instance)
        except TemplateError:
            if (past := find_past(name, instance=instance)) is None or past.config is None:
                raise
            source = await _ensure(name, config, instance, any_kind=True)
        return cls(source, config, instance, any_kind=True)

    async def refresh(self) -> None:
        """The template that is in force now is forked from now on. Raises what `fetch` raises."""
        self._follow(await self._source.renew())
        self._check_recipe()

    async def rebuild(self) -> None:
        """The template is there and fits, made as it was made before, here or by another process.

        Raises `TemplateNotFound` when that needs what was not kept, and what building raises.
        """
        name = self._source.manifest.name
        if self._any_kind and self._kept is None and not self._config.is_plain:
            raise TemplateNotFound(name)  # what it was made from is not known
        self._follow(
            await _ensure(
                name, self._config, self._instance, any_kind=self._any_kind, recipe=self._recipe, kept=self._kept
            )
        )

    async def get_base_vm(self, *, timeout_s: float | None = None) -> BaseVM:
        """A fork that was not adopted yet. Raises `TemplateNotFound` when the template was removed meanwhile."""
        await self.refresh()
        return await self._source.fork_base()

    async def aclose(self) -> None:
        """Nothing is held; the template stays."""

    def _follow(self, source: Source) -> None:
        if source is not self._source:
            self._source = source
            self.kind = _kind_of(source)
            self._kept = _read_kept(source, self._instance)

    def _check_recipe(self) -> None:
        if self._recipe is not None:
            check_recipe(self._source, self._recipe)


async def _ensure(
    name: str,
    config: VMConfig,
    instance: Instance,
    *,
    any_kind: bool,
    recipe: Recipe | None = None,
    kept: KeptRecipe | None = None,
) -> Source:
    return await ensure_template(
        name, config, instance=instance, wait_s=_BUILD_WAIT_S, recipe=recipe, kept=kept, any_kind=any_kind
    )


def _read_kept(source: Source, instance: Instance) -> KeptRecipe | None:
    # Read while the template is there: removing it removes its recipe as well.
    try:
        return find_recipe(source.manifest.name, places=instance.places)
    except TemplateCorrupt:
        return None  # the template can be forked all the same; the damage is told when it has to be built again


def _kind_of(source: Source) -> Kind:
    m = source.manifest
    return Kind(
        name=f"template {m.name!r}",
        image=m.base_image or m.image,
        traits=m.traits,
        hardware=source.hardware,
        generation=m.generation,
        shares_memory=True,
        where="template",
        template=m.name,
        recipe=(recipe := name_done(m)),
        is_warmed=bool(recipe or m.hooks),
    )

"""How the templates of this host were made, below HOME. A reboot takes the templates; this makes them again.

```
HOME/recipes/NAME.json    0600; written when NAME is published, gone when NAME is removed
```
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmfork.adopt.secrets import Secrets
from vmfork.config import ImageConfig, VMConfig  # noqa: TC001 - a record's types are looked up when it is read
from vmfork.errors import ConfigError, TemplateCorrupt, TemplateNotFound
from vmfork.host.folders import NO_FILE, make_private, read_file, write_whole
from vmfork.machine.ways import load_ways
from vmfork.recipe.step import READY_LIMIT_S, STEP_LIMIT_S
from vmfork.recipe.words import read_steps
from vmfork.records import read_record, write_record
from vmfork.template.names import name_recipe
from vmfork.template.recipe import Recipe
from vmfork.template.removal import locate_recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmfork.config import Places
    from vmfork.network.policy import NetworkPolicy

# Of a machine; all else that a recipe says of one is in the traits of its template.
_SIZES = ("cpus", "memory_mib", "max_cpus", "max_memory_mib")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRecipe:
    """A recipe as it can be kept, and the configuration that it was made with.

    `env` are names only: the values were for the warm-up alone, and may be secrets. One that was frozen while it ran
    (`is_live`) has none that could be followed, nor has one that `came_from` a file or a registry.
    `reaches` is what its commands may reach: nothing, `all`, or the entries of a list. `steps` are in the words of a
    recipe, and read what is in and below `folder`; `recipe` is its name, where it has steps. `base` is what its image
    is made of, where the recipe says that.
    """

    config: VMConfig
    warm_up: tuple[str, ...] = ()
    ready: str = ""
    env: tuple[str, ...] = ()
    secret_paths: tuple[str, ...] = ()
    secret_env: tuple[str, ...] = ()
    secrets_allowed: bool = False
    step_timeout_s: float = STEP_LIMIT_S
    ready_timeout_s: float = READY_LIMIT_S
    is_live: bool = False
    came_from: str = ""
    reaches: tuple[str, ...] = ()
    reaches_more: bool = False
    steps: tuple[Any, ...] = ()
    folder: str = ""
    recipe: str = ""
    base: ImageConfig | None = None

    @property
    def is_followable(self) -> bool:
        """Whether the template can be made again by it."""
        return not (self.env or self.is_live or self.came_from)

    @property
    def name(self) -> str:
        """The name of the recipe; see `Recipe.name`."""
        return self.recipe or name_recipe(self.warm_up, self.ready)

    @classmethod
    def of(cls, recipe: Recipe, config: VMConfig) -> KeptRecipe:
        return cls(
            config=config,
            warm_up=recipe.warm_up,
            ready=recipe.ready,
            env=tuple(recipe.env),
            secret_paths=recipe.secrets.paths,
            secret_env=recipe.secrets.env,
            secrets_allowed=recipe.secrets.allowed,
            step_timeout_s=recipe.step_timeout_s,
            ready_timeout_s=recipe.ready_timeout_s,
            reaches=_entries_of(recipe.network),
            reaches_more=not isinstance(recipe.network, str) and recipe.network.log_only,
            steps=tuple(step.to_words() for step in recipe.steps),
            folder=str(recipe.folder) if recipe.steps else "",
            recipe=recipe.name if recipe.steps else "",
            base=recipe.base,
        )

    def to_recipe(self, name: str) -> Recipe:
        """The recipe of the template `name`. Raises `TemplateNotFound` when it needs more than was kept."""
        if self.is_live:
            error = TemplateNotFound(name)
            error.hint = "it was frozen from a running VM, and nothing tells how to make it again: freeze one again"
            raise error
        if self.came_from:
            error = TemplateNotFound(name)
            error.hint = (
                f"it came from {self.came_from}, and nothing here tells how to make it: load it again from there"
            )
            raise error
        if self.env:
            error = TemplateNotFound(name)
            variables = " and ".join(self.env)
            error.hint = f"it was warmed up with {variables}, whose values are not kept: build it again with them"
            raise error
        return Recipe(
            steps=read_steps(self.steps),
            folder=Path(self.folder),
            base=self.base,
            warm_up=self.warm_up,
            ready=self.ready,
            secrets=Secrets(paths=self.secret_paths, env=self.secret_env, allowed=self.secrets_allowed),
            step_timeout_s=self.step_timeout_s,
            ready_timeout_s=self.ready_timeout_s,
            network=self._network,
        )

    @property
    def _network(self) -> NetworkPolicy:
        if self.reaches == ("all",):
            return "all"
        if not (self.reaches or self.reaches_more):
            return "none"
        listed: NetworkPolicy = load_ways().Allow(*self.reaches, log_only=self.reaches_more)
        return listed


def _entries_of(policy: NetworkPolicy) -> tuple[str, ...]:
    if not isinstance(policy, str):
        return policy.entries
    return () if policy == "none" else (policy,)


@contextmanager
def keeping_recipe(name: str, recipe: KeptRecipe, *, places: Places) -> Iterator[None]:
    """The recipe is kept for the template that the block publishes. After an error the former recipe is back."""
    path = locate_recipe(name, places)
    make_private(path.parent)
    before = path.read_bytes() if path.exists() else None
    write_whole(path, write_record(recipe))
    try:
        yield
    except BaseException:
        if before is None:
            path.unlink(missing_ok=True)
        else:
            write_whole(path, before)
        raise


def find_recipe(name: str, *, places: Places) -> KeptRecipe | None:
    """The recipe of the template that was last published under `name`, or `None`.

    Raises `TemplateCorrupt` when it is damaged, and `OSError` when it cannot be read: without it the template would be
    built as a bare one.
    """
    path = locate_recipe(name, places)
    try:
        return read_record(KeptRecipe, read_file(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ConfigError) as error:
        if isinstance(error, OSError) and error.errno not in NO_FILE:
            raise  # the host refused: the recipe may be whole
        raise TemplateCorrupt(name, str(path), f"its recipe cannot be read: {error}") from error


def is_of_its_size(name: str, recipe: Recipe, *, places: Places) -> bool:
    """Whether the template `name` was made of the size that the recipe says, as far as it says one.

    What it has may be more: an image may need more memory than was said. Of one that nobody can make again, and so says
    no size, it is true; where what is kept of it is damaged, false.
    """
    said = {key: recipe.vm[key] for key in _SIZES if key in recipe.vm}
    try:
        kept = find_recipe(name, places=places) if said else None
    except TemplateCorrupt:
        return False
    if kept is None or kept.is_live or kept.came_from:
        return True
    return all(getattr(kept.config, key) == size for key, size in said.items())

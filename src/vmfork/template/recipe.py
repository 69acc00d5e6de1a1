"""What is done to a booted machine before it is frozen, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from vmfork.adopt.secrets import Secrets
from vmfork.config import ImageConfig, VMConfig
from vmfork.config.loader import name_unknown
from vmfork.config.source import absolute_source
from vmfork.errors import ConfigError
from vmfork.late import import_late
from vmfork.machine.ways import load_ways
from vmfork.recipe.context import Context
from vmfork.recipe.pins import digest_steps
from vmfork.recipe.step import READY_LIMIT_S, STEP_LIMIT_S, Ready, Run
from vmfork.recipe.words import check_logs, check_order, read_steps
from vmfork.template.names import NAME_SIZE, name_recipe
from vmfork.wire.command import check_env

if TYPE_CHECKING:
    from vmfork.network.policy import NetworkPolicy
    from vmfork.recipe.step import Step

_MACHINE = tuple(field.name for field in fields(VMConfig))


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is done to a booted machine before it is frozen.

    `steps` are done in order; they may be given as tables in the words of a recipe (`recipe/words.py`). What they read
    of this host lies in and below `folder`, by default the current one. Behind them come two short forms. `warm_up` are
    shell commands, each at most `step_timeout_s` seconds; a failing one fails the build. `ready` is a shell command
    that is tried until it succeeds, at most `ready_timeout_s` seconds. `network` is what these two may reach, and ends
    with them. Programs of all steps have `env`, whose values are not kept. A machine that holds one of `secrets` is not
    frozen, nor one with a program that still has a secret of its step. `vm` are fields of the `VMConfig` that the
    recipe says. `base` is what its image is made of, where it says that: it is made, or made anew, before the template.
    """

    steps: tuple[Step, ...] = ()
    folder: Path = Path()
    vm: Mapping[str, Any] = field(default_factory=dict)
    base: ImageConfig | None = None
    warm_up: tuple[str, ...] = ()
    ready: str = ""
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    secrets: Secrets = field(default_factory=Secrets)
    step_timeout_s: float = STEP_LIMIT_S
    ready_timeout_s: float = READY_LIMIT_S
    network: NetworkPolicy = "none"
    # Images that its file says how to make, for whoever names none that there is.
    images: tuple[str, ...] = field(default=(), repr=False, compare=False)
    pins: tuple[str, ...] = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.network != "none":
            load_ways().check_policy(self.network)
        for command in self.warm_up:
            if not isinstance(command, str) or "\0" in command:
                raise ConfigError("warm_up", command, "a warm-up command is a line of shell")
        if not isinstance(self.ready, str) or "\0" in self.ready:
            hint = 'a table goes into the steps, as the last: {"ready": {"port": 8000}}'
            raise ConfigError("ready", self.ready, "must be a line of shell", hint=hint)
        for key in self.vm:
            if key not in _MACHINE:
                raise name_unknown(f"vm.{key}", "a recipe has it", "fields of a machine", _MACHINE)
        object.__setattr__(self, "env", check_env(self.env))
        object.__setattr__(self, "steps", _read(self.steps))
        check_order(self.all_steps)
        check_logs(self.all_steps)
        given = [name for step in self.steps if isinstance(step, Run) for name in step.secrets]
        watched = tuple(dict.fromkeys((*self.secrets.env, *given)))
        object.__setattr__(self, "secrets", replace(self.secrets, env=watched))
        # A folder that was removed has no path: who has no steps may be in one.
        object.__setattr__(self, "folder", Path(self.folder).absolute() if self.steps else Path())

    @property
    def all_steps(self) -> tuple[Step, ...]:
        """Its steps, with those that the short forms stand for."""
        lines = (Run(line=line, network=self.network, timeout_s=self.step_timeout_s) for line in self.warm_up)
        ready = Ready(
            condition="command", value=self.ready or "true", network=self.network, timeout_s=self.ready_timeout_s
        )
        return (*self.steps, *lines, *([ready] if self.ready else ()))

    def apply_to(self, config: VMConfig) -> VMConfig:
        """The configuration with what the recipe says of the machine. Raises `ConfigError` when none can have it."""
        return replace(config, **self.vm)

    @property
    def context(self) -> Context:
        """What its steps may read of this host. Raises `ConfigError` when its ignore file makes no sense."""
        return Context.of(self.folder) if self.steps else Context.empty()

    def pinned(self) -> Self:
        """The same, which knows what its steps depend on now: files are read, so call it in a thread.

        Raises `ConfigError` for a file that is missing, or that no recipe may read.
        """
        return replace(self, pins=digest_steps(self.all_steps, self.context))

    @property
    def name(self) -> str:
        """Names what is done: see `name_recipe`. With steps that is what it reads too, when it was pinned or now."""
        if not self.steps:
            return name_recipe(self.warm_up, self.ready)
        return (self.pins or self.pinned().pins)[-1][:NAME_SIZE]


def _read(given: Any) -> tuple[Step, ...]:
    """The steps, of tables in the words of a recipe or of steps."""
    is_read = isinstance(given, tuple) and not any(isinstance(each, Mapping) for each in given)
    return given if is_read else read_steps(given)


def base_of(source: str, folder: Path) -> tuple[ImageConfig, dict[str, str]]:
    """What the image of a recipe with `from` is made of, and the field of the machine that names that image.

    Paths are from `folder` on. Raises `ConfigError` for a source that is none.
    """
    absolute = absolute_source(source, folder)
    name: str = import_late("vmfork.container.kept", "name_source")(absolute)
    return ImageConfig(source=absolute), {"image": name}

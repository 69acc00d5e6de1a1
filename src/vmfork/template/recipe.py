"""What is done to a booted machine before it is frozen, as a value, and the words that say it.

The same in Python and, as a table, in TOML (template/recipe_file.py): both are read here.

```
image = "default"                         of the machine: see template/recipe_machine.py
memory = "512M"
steps = [{pip = "requirements.txt"}, {copy = ["app/", "/srv/app"]}]       see recipe/words.py
hooks = {after_fork = "hooks/reseed"}     a step behind them,
start = "python3 /srv/app/main.py"        another, and
ready = {port = 8000}                     the last; a text is a command

warm_up = ["python3 -c 'import json'"]    short form of `run`, behind the steps
secret_paths = ["/root/.netrc"]           while one exists, or a process has a variable of secret_env,
secret_env = ["TOKEN"]                    the machine is not frozen, unless
allow_secrets = false
step_timeout_s = "10m"                    of warm_up; of ready, unless its table has another: a duration, or a number of
ready_timeout_s = 120                     seconds
```
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from vmfork.adopt.secrets import Secrets
from vmfork.config.loader import name_unknown
from vmfork.errors import ConfigError
from vmfork.machine.ways import load_ways
from vmfork.recipe.context import Context
from vmfork.recipe.pins import digest_steps
from vmfork.recipe.step import READY_LIMIT_S, STEP_LIMIT_S, Ready, Run
from vmfork.recipe.words import check_logs, check_order, read_hooks, read_ready, read_start, read_steps
from vmfork.template.names import NAME_SIZE, name_recipe
from vmfork.template.recipe_machine import FIELDS, SIZES, read_base, read_fields
from vmfork.units import parse_seconds
from vmfork.wire.command import check_env

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmfork.config import ImageConfig, VMConfig
    from vmfork.network.policy import NetworkPolicy
    from vmfork.recipe.step import Step
    from vmfork.units import Size
    from vmfork.wire.given import HostPath

FROM = "from"
# The words for how it is made; beside them stand those for the machine.
WORDS = (
    "steps",
    "hooks",
    "start",
    "ready",
    "warm_up",
    "secret_paths",
    "secret_env",
    "allow_secrets",
    "step_timeout_s",
    "ready_timeout_s",
)
_IN_PYTHON = (*WORDS, "from_", *SIZES, *FIELDS, "folder", "env", "network")


@dataclass(frozen=True, slots=True, init=False)
class Recipe:
    """What is done to a booted machine before it is frozen.

    It is made of the words of `[template.NAME]` (docs/guides/recipes.md), of which `from` is `from_` here:
    `Recipe(memory="512M", steps=[...], start="server", ready={"port": 8000})`, or `Recipe(**table)` of such a section.
    The same words are the same template, wherever they stand.

    `steps` are done in order, each a table with one word. What they read of this host lies in and below `folder`, by
    default the current one. Behind them come `hooks`, `start` and a `ready` that is a table; then two short forms.
    `warm_up` are shell commands, each at most `step_timeout_s` seconds; a failing one fails the build. A `ready` that
    is text is a shell command that is tried until it succeeds. Either is waited for `ready_timeout_s` seconds at most,
    unless the table has a `timeout`. `network` is what `warm_up` and `ready` may reach, and ends with them. Programs of
    all steps have `env`, whose values are not kept. A machine is not frozen, unless `allow_secrets`, while one of
    `secret_paths` exists, or a program has a variable of `secret_env` or a secret of its step.

    `memory`, `max_memory` and `disk` are sizes of the machine, `vm` and all other words fields of its `VMConfig`.
    `from_` says where a container image is that it boots: it is imported, or imported anew, before the template is
    made. `base` says the same of any image, and `secrets` what the three words do.

    Raises `ConfigError`, which names the word that is wrong, and of an unknown one the nearest.
    """

    steps: tuple[Step, ...]
    folder: Path
    vm: Mapping[str, Any]
    base: ImageConfig | None
    warm_up: tuple[str, ...]
    ready: str
    env: Mapping[str, str] = field(repr=False)
    secrets: Secrets
    step_timeout_s: float
    ready_timeout_s: float
    network: NetworkPolicy
    # Images that its file says how to make, for whoever names none that there is.
    images: tuple[str, ...] = field(repr=False, compare=False)
    pins: tuple[str, ...] = field(repr=False, compare=False)

    def __init__(
        self,
        *,
        steps: Sequence[Step | Mapping[str, Any]] = (),
        folder: HostPath = "",
        hooks: Mapping[str, Any] | None = None,
        start: str | None = None,
        ready: str | Mapping[str, Any] = "",
        warm_up: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        network: NetworkPolicy = "none",
        from_: str | None = None,
        memory: Size | None = None,
        max_memory: Size | None = None,
        disk: Size | None = None,
        secret_paths: Sequence[str] = (),
        secret_env: Sequence[str] = (),
        allow_secrets: bool = False,
        step_timeout_s: float | str = STEP_LIMIT_S,
        ready_timeout_s: float | str = READY_LIMIT_S,
        vm: Mapping[str, Any] | None = None,
        base: ImageConfig | None = None,
        secrets: Secrets | None = None,
        images: tuple[str, ...] = (),
        pins: tuple[str, ...] = (),
        **machine: Any,
    ) -> None:
        from_word = FROM if FROM in machine else "from_"
        source = machine.pop(FROM, from_)
        for key in machine:
            if key not in FIELDS:
                raise name_unknown(key, "a recipe has it", "words of a recipe", _IN_PYTHON)
        if network != "none":
            load_ways().check_policy(network)
        step_limit_s = parse_seconds(step_timeout_s, field="step_timeout_s")
        ready_limit_s = parse_seconds(ready_timeout_s, field="ready_timeout_s")
        lines = _read_list("warm_up", warm_up)
        for command in lines:
            if "\0" in command:
                raise ConfigError("warm_up", command, "a warm-up command is a line of shell")
        done = [*_read(steps)]
        if hooks is not None:
            done.append(read_hooks(hooks, field="hooks"))
        if start is not None:
            done.append(read_start(start, field="start"))
        if not isinstance(ready, str):
            done.append(read_ready(ready, field="ready", network=network, limit_s=ready_limit_s))
        elif "\0" in ready:
            raise ConfigError("ready", ready, "must be a line of shell")
        if not isinstance(allow_secrets, bool):
            raise ConfigError("allow_secrets", allow_secrets, "must be true or false")
        said = {"memory": memory, "max_memory": max_memory, "disk": disk, **machine}
        given = read_fields(vm or {}, said)
        if source is not None:
            base, given = read_base(source, Path(folder), given, field=from_word)
        before = secrets or Secrets()
        watched = Secrets(
            paths=(*before.paths, *_read_list("secret_paths", secret_paths)),
            env=(*before.env, *_read_list("secret_env", secret_env)),
            allowed=before.allowed or allow_secrets,
        )
        of_steps = [name for step in done if isinstance(step, Run) for name in step.secrets]
        values = {
            "steps": tuple(done),
            # A folder that was removed has no path: who has no steps may be in one.
            "folder": Path(folder).absolute() if done else Path(),
            "vm": given,
            "base": base,
            "warm_up": lines,
            "ready": ready if isinstance(ready, str) else "",
            "env": check_env(env or {}),
            "secrets": replace(watched, env=tuple(dict.fromkeys((*watched.env, *of_steps)))),
            "step_timeout_s": step_limit_s,
            "ready_timeout_s": ready_limit_s,
            "network": network,
            "images": images,
            "pins": pins,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        check_order(self.all_steps)
        check_logs(self.all_steps)

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


def _read_list(word: str, given: Any) -> tuple[str, ...]:
    """The texts of a list. Raises `ConfigError` for what is none, as one text is."""
    is_list = isinstance(given, Iterable) and not isinstance(given, (str, bytes, Mapping))
    listed = tuple(given) if is_list else ()
    if not is_list or not all(isinstance(each, str) for each in listed):
        raise ConfigError(word, given, "must be a list of strings")
    return listed

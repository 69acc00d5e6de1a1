"""The steps of a recipe, as values: what is done to a machine before it is frozen."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from vmfork.code.source import find_code
from vmfork.config import ImageConfig
from vmfork.errors import ConfigError
from vmfork.machine.ways import load_ways
from vmfork.wire.command import check_env
from vmfork.wire.given import check_path

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmfork.network.policy import NetworkPolicy

# Where the agent looks for them (docs/guides/templates-and-hooks.md).
HOOKS = "/etc/vmfork"
STEP_LIMIT_S = 600.0
READY_LIMIT_S = 120.0
# Of a `ready` that waits for a line of a log.
NOTHING_STARTED = "nothing was started whose log it could be"

Condition = Literal["command", "port", "file", "log"]
_MOST_SHOWN = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Packages:
    """The image has these Debian packages too. It is derived from the recipe's image, and kept as one."""

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        ImageConfig(packages=self.names)  # which knows what is no name

    def to_words(self) -> dict[str, Any]:
        return {"packages": [*self.names]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pip:
    """Python packages are installed: requirements, and files of requirements or wheels of the recipe's folder."""

    wanted: tuple[str, ...]
    timeout_s: float = STEP_LIMIT_S

    def __post_init__(self) -> None:
        for each in self.wanted:
            if each.startswith("-"):
                hint = "name files of requirements by themselves; options are pip's own settings"
                raise ConfigError("pip", each, f"{each!r} is no requirement", hint=hint)

    def to_words(self) -> dict[str, Any]:
        return {"pip": [*self.wanted], **_timeout(self.timeout_s, STEP_LIMIT_S)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """Files and folders of the recipe's folder are at `target`, a path in the guest.

    What is in a folder goes into the folder `target`. A file is `target`, or in it where that ends with a slash, or
    there are several sources.
    """

    sources: tuple[str, ...]
    target: str
    timeout_s: float = STEP_LIMIT_S

    def __post_init__(self) -> None:
        check_path(self.target, field="copy")

    def to_words(self) -> dict[str, Any]:
        return {"copy": [*self.sources, self.target], **_timeout(self.timeout_s, STEP_LIMIT_S)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """Files of the recipe's folder are hooks of the machine, executable: run before a freeze, or in each fork.

    Each has its own name in the hooks' folder of the guest; what has that name there is replaced.
    """

    before_freeze: tuple[str, ...] = ()
    after_fork: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (self.before_freeze or self.after_fork):
            raise ConfigError("hooks", {}, "names no hook", hint='such as {after_fork = "hooks/reseed"}')
        for sources in (self.before_freeze, self.after_fork):
            names = [PurePosixPath(source).name for source in sources]
            for source, name in zip(sources, names, strict=True):
                if not name or name.startswith(".") or name.endswith("~"):
                    reason = f"{source!r} would be passed over: its name begins with a dot or ends with ~"
                    raise ConfigError("hooks", source, reason, hint="give the file another name")
                if names.count(name) > 1:
                    raise ConfigError("hooks", source, f"two hooks have the name {name!r}", hint="rename one")

    @property
    def placed(self) -> tuple[tuple[str, str], ...]:
        """Each file of the recipe's folder, and the path in the guest that it goes to."""
        folders = (("before-freeze.d", self.before_freeze), ("after-fork.d", self.after_fork))
        return tuple(
            (each, f"{HOOKS}/{folder}/{PurePosixPath(each).name}") for folder, found in folders for each in found
        )

    def to_words(self) -> dict[str, Any]:
        kinds = {"before_freeze": self.before_freeze, "after_fork": self.after_fork}
        return {"hooks": {kind: [*sources] for kind, sources in kinds.items() if sources}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A line of shell, or code below a line such as `#!python`, succeeded.

    What it was given ends with it: `network`, `secrets` and `secret_files`.

    `secrets` are names of variables of this process's environment, `secret_files` map a path in the guest to a file of
    the host.
    """

    line: str
    network: NetworkPolicy = "none"
    secrets: tuple[str, ...] = ()
    secret_files: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = STEP_LIMIT_S

    def __post_init__(self) -> None:
        _check_line("run", self.line)
        # What nobody could run is told before a machine is booted for it.
        if find_code(self.line) is not None and self.secrets:
            reason = "code in an interpreter that stays would keep them"
            hint = "give it secret_files, or run a program: python3 file.py"
            raise ConfigError("secrets", [*self.secrets], reason, hint=hint)
        _check_network(self.network)
        check_env(dict.fromkeys(self.secrets, ""))
        for path in self.secret_files:
            check_path(path, field="secret_files")

    def to_words(self) -> dict[str, Any]:
        secrets = {"secrets": [*self.secrets]} if self.secrets else {}
        files = {"secret_files": dict(self.secret_files)} if self.secret_files else {}
        limit = _timeout(self.timeout_s, STEP_LIMIT_S)
        return {"run": self.line, **_network(self.network), **secrets, **files, **limit}


@dataclass(frozen=True, slots=True, kw_only=True)
class Env:
    """The programs of all later steps have these variables."""

    variables: Mapping[str, str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "variables", check_env(self.variables))

    def to_words(self) -> dict[str, Any]:
        return {"env": dict(self.variables)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workdir:
    """The programs of all later steps start in this folder of the guest, which was made where it was missing."""

    path: str

    def __post_init__(self) -> None:
        check_path(self.path, field="workdir")

    def to_words(self) -> dict[str, Any]:
        return {"workdir": self.path}


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """The programs of all later steps are this user's, a name or a number that the guest knows."""

    name: str

    def __post_init__(self) -> None:
        if not self.name or "\0" in self.name:
            raise ConfigError("user", self.name, f"{self.name!r} is no user")

    def to_words(self) -> dict[str, Any]:
        return {"user": self.name}


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A program was started, and runs on: in the template, and so in each fork."""

    line: str

    def __post_init__(self) -> None:
        _check_line("start", self.line)

    def to_words(self) -> dict[str, Any]:
        return {"start": self.line}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A condition was met: a command succeeds, a program of the guest listens on a port, or a file is there.

    Or the program that was started last has written a line in which the regular expression `log` is found.
    """

    condition: Condition
    value: str
    network: NetworkPolicy = "none"
    timeout_s: float = READY_LIMIT_S

    def __post_init__(self) -> None:
        _check_line("ready", self.value)
        _check_network(self.network)

    @property
    def is_plain(self) -> bool:
        """Whether it is the short form: a command alone."""
        return (self.condition, self.network, self.timeout_s) == ("command", "none", READY_LIMIT_S)

    def to_words(self) -> dict[str, Any]:
        if self.is_plain:
            return {"ready": self.value}
        value = int(self.value) if self.condition == "port" else self.value
        limit = _timeout(self.timeout_s, READY_LIMIT_S)
        return {"ready": {self.condition: value, **_network(self.network), **limit}}


Step: TypeAlias = Packages | Pip | Copy | Hooks | Run | Env | Workdir | User | Start | Ready


def describe(step: Step) -> str:
    """The step as it is named in messages: its word, and what it is about."""
    word, value = next(iter(step.to_words().items()))
    if isinstance(step, Env):
        text = " ".join(step.variables)  # their values may be anybody's
    elif isinstance(step, Hooks):
        text = shlex.join(source for source, _ in step.placed)
    elif isinstance(value, dict):
        text = " ".join(f"{key} {what}" for key, what in value.items() if key in ("command", "port", "file", "log"))
    else:
        text = value if isinstance(value, str) else shlex.join(value)
    text = " ".join(text.split())
    return f"{word} {text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 1] + '…'}"


def _timeout(timeout_s: float, default: float) -> dict[str, float]:
    return {} if timeout_s == default else {"timeout": timeout_s}


def _network(policy: NetworkPolicy) -> dict[str, Any]:
    if policy == "none":
        return {}
    if isinstance(policy, str):
        return {"network": policy}
    return {"network": [*policy.entries], **({"network_log_only": True} if policy.log_only else {})}


def _check_network(policy: NetworkPolicy) -> None:
    if policy != "none":
        load_ways().check_policy(policy)


def _check_line(word: str, line: object) -> None:
    if not isinstance(line, str) or not line.strip() or "\0" in line:
        raise ConfigError(word, line, f"{line!r} is no line of shell" if word != "ready" else f"{line!r} is nothing")
    try:
        line.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ConfigError(word, line, "is no text") from None

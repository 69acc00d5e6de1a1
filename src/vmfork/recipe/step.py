"""The steps of a recipe, as values: what is done to a machine before it is frozen."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from vmfork.config import ImageConfig
from vmfork.errors import ConfigError
from vmfork.machine.ways import load_ways
from vmfork.wire.command import check_env
from vmfork.wire.given import check_path

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmfork.network.policy import NetworkPolicy

STEP_LIMIT_S = 600.0
READY_LIMIT_S = 120.0

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
class Run:
    """A line of shell succeeded. What it was given ends with it: `network`, `secrets` and `secret_files`.

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


Step: TypeAlias = Packages | Pip | Copy | Run | Env | Workdir | User | Start | Ready


def describe(step: Step) -> str:
    """The step as it is named in messages: its word, and what it is about."""
    word, value = next(iter(step.to_words().items()))
    if isinstance(step, Env):
        text = " ".join(step.variables)  # their values may be anybody's
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

"""What is asked for in one fork, as a value."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from vmfork.config import check_name
from vmfork.config.values import check_disk_mib
from vmfork.errors import ConfigError
from vmfork.machine.card import check_card
from vmfork.machine.ways import load_ways
from vmfork.wire.command import check_env
from vmfork.wire.given import check_file, check_path

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmfork.config import CardChoice, LeftPrograms
    from vmfork.network.policy import NetworkPolicy
    from vmfork.wire.given import GivenFile, PlacedFile


# Forks of one machine. Each is a process of the host's; more would be refused for want of memory long before.
MOST_FORKS = 1000

# Request and answer of ADOPT are a frame each (wire/frame.py), with some hundred bytes of other items. A variable costs
# up to 24 bytes beside its own in either.
_MOST_ENV, _ITEM_BYTES = 240 * 1024, 24
# MAX_ARG_STRLEN (linux/binfmts.h), without the NUL.
_MOST_VARIABLE = 128 * 1024 - 1
_IN_A_FILE = "put it into a file of the guest: files="


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkRequest:
    """What one machine gets beyond its template. None of it enters a template.

    `env` is the environment of every program in it. `files` (absolute path: content) are written into it before its
    hooks run: bytes, or text as UTF-8, with mode 0600; a path-like object is a file of the host, whose mode it keeps.
    It is grown to `cpus` CPUs and `memory_mib` MiB; `None` leaves it as it is. It ends after `ttl_s` seconds, and after
    `idle_ttl_s` without a request to its guest; 0 is never. `network` is what it may reach, from before its hooks;
    `card` what its network card leads to. `disk_mib` is the size of its disk, MiB: 0 is none, `None` what it is made
    from has.
    `allow_guest_fork` machines may live that its own programs make.
    Raises `ConfigError` for an invalid variable, path, size, time, policy or number.
    """

    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    files: Mapping[str, GivenFile] = field(default_factory=dict, repr=False)
    cpus: int | None = None
    memory_mib: int | None = None
    ttl_s: float = 0.0
    idle_ttl_s: float = 0.0
    network: NetworkPolicy = "none"
    card: CardChoice = "none"
    allow_guest_fork: int = 0
    disk_mib: int | None = None

    def __post_init__(self) -> None:
        if self.network != "none":
            load_ways().check_policy(self.network)
        check_card(self.card, self.network)
        object.__setattr__(self, "env", _check_room(check_env(self.env)))
        object.__setattr__(self, "files", _check_files(self.files))
        for name in ("cpus", "memory_mib"):
            size = getattr(self, name)
            if size is not None and (not isinstance(size, int) or isinstance(size, bool)):
                raise ConfigError(name, size, f"{size!r} is not a whole number", hint=f"give {name} as a number")
        if self.disk_mib is not None:
            check_disk_mib(self.disk_mib, field="disk")
        for name in ("ttl_s", "idle_ttl_s"):
            check_ttl(getattr(self, name), field=name)
        check_allowed(self.allow_guest_fork)

    @property
    def placed(self) -> Mapping[str, PlacedFile]:
        """The files, as they will be."""
        return cast("Mapping[str, PlacedFile]", self.files)

    @property
    def grows(self) -> bool:
        """Whether it asks for a size."""
        return self.cpus is not None or self.memory_mib is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a machine stands on its own: what it is called, and when it ends by itself.

    It ends after `ttl_s` seconds, and after `idle_ttl_s` seconds without a client; 0 is never. Raises `ConfigError` for
    an invalid name, label or time.
    """

    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    ttl_s: float = 0.0
    idle_ttl_s: float = 0.0

    def __post_init__(self) -> None:
        if self.name:
            check_name(self.name)
        object.__setattr__(self, "labels", _check_labels(self.labels))
        for name in ("ttl_s", "idle_ttl_s"):
            check_ttl(getattr(self, name), field=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveFork:
    """What is asked of forks of a running machine: how many, what each gets, whether hooks run, how they stand.

    With `hooks` those of before a freeze run in the parent first, and those of after a fork in each fork. `programs`:
    whether those that clients of the parent have running run on in the forks. `asks`: programs that wait for an answer
    of the host wait on in the forks.
    """

    count: int
    request: ForkRequest
    programs: LeftPrograms = "keep"
    asks: bool = False
    hooks: bool = False
    standing: Standing | None = None
    timeout_s: float
    hook_timeout_s: float


def check_ttl(ttl_s: float, *, field: str = "ttl_s") -> float:
    """`ttl_s` itself. Raises `ConfigError`, naming `field`, when it cannot be a time to live."""
    if isinstance(ttl_s, bool) or not isinstance(ttl_s, (int, float)) or not math.isfinite(ttl_s) or ttl_s < 0:
        raise ConfigError(field, ttl_s, "the time to live must be a number of seconds; 0 is no limit")
    return float(ttl_s)


def check_allowed(count: int) -> int:
    """`count` itself. Raises `ConfigError` when so many machines cannot be allowed to live beside one; 0 is none."""
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= MOST_FORKS:
        reason = f"0 to {MOST_FORKS} machines may live beside one that its programs fork"
        raise ConfigError("allow_guest_fork", count, reason)
    return count


def _check_room(env: dict[str, str]) -> dict[str, str]:
    """`env` itself. Raises `ConfigError` for a variable that no program could have, and for more than fits a fork."""
    total = 0
    for key, value in env.items():
        size = sum(len(part.encode("utf-8", "surrogateescape")) for part in (key, "=", value))
        total += size + _ITEM_BYTES
        if size > _MOST_VARIABLE:
            raise ConfigError("env", key, f"{key} has {size:,} bytes, Linux takes {_MOST_VARIABLE:,}", hint=_IN_A_FILE)
    if total > _MOST_ENV:
        reason = f"the variables have more than {_MOST_ENV // 1024} KiB together"
        raise ConfigError("env", len(env), reason, hint=_IN_A_FILE)
    return env


def _check_labels(labels: Mapping[str, str]) -> dict[str, str]:
    for key, value in labels.items():
        if not isinstance(key, str) or not key or "=" in key or not key.isprintable():
            raise ConfigError("labels", key, f"{key!r} is not the key of a label", hint="write KEY=VALUE")
        if not isinstance(value, str) or not value.isprintable():
            raise ConfigError("labels", value, f"the value of the label {key} must be a line of text")
    return dict(labels)


def _check_files(files: Mapping[str, GivenFile]) -> dict[str, PlacedFile]:
    """`files` as they will be. Raises `ConfigError` when a path cannot be a file's, or a file of the host be read."""
    ready: dict[str, PlacedFile] = {}
    for path, content in files.items():
        text = check_path(path, field="files")
        if text.endswith("/"):
            raise ConfigError("files", path, f"{text!r} is the path of a folder")
        ready[text] = check_file(content, field=f"files: {text}")
    return ready

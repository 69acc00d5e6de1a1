"""How far emulators are kept from their host: the levels by name, and what a configuration says of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from vmfork.errors import ConfigError

IsolationLevel = Literal["none", "basic", "namespaces", "full"]
# From the least to the most.
LEVELS: tuple[IsolationLevel, ...] = get_args(IsolationLevel)

# Of no real user: systemd leaves these free in its list of who uses which ids (UIDS-GIDS), and they are above what SSSD
# makes up for the users of a domain (up to 2,000,200,000).
DEFAULT_USERS = "2100000000-2100065535"
_RANGE = re.compile(r"(\d{1,10})-(\d{1,10})")
# Those of the distribution and of people who log in are below (login.defs: UID_MAX), and setresuid(2) takes -1 for
# "as it is".
_LOWEST, _HIGHEST = 65_536, (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class UserRange:
    """User ids from `first` to `last`, both of them too, that may be given to machines."""

    first: int
    last: int


_DEFAULT_RANGE = UserRange(*map(int, DEFAULT_USERS.split("-")))


@dataclass(frozen=True, slots=True, kw_only=True)
class IsolationPolicy:
    """What is asked for: nothing with `is_off`, else all that this host can do, and `required` at least.

    `users` are whom machines may become where the host's root starts them. With `in_groups` each has control groups of
    its own, and `cpu_weight` in them, 100 by default.
    """

    is_off: bool = False
    required: IsolationLevel = "none"
    users: UserRange = _DEFAULT_RANGE
    in_groups: bool = True
    cpu_weight: int = 100


def parse_users(text: str, *, field: str) -> UserRange:
    """The range that `text` writes as `FIRST-LAST`. Raises `ConfigError` for anything else, and for a user's own."""
    found = _RANGE.fullmatch(text) if isinstance(text, str) else None
    first, last = (int(found[1]), int(found[2])) if found else (0, 0)
    if found is None or first > last:
        raise ConfigError(field, text, f"{text!r} is not a range of user ids", hint=f"write it as {DEFAULT_USERS}")
    if not _LOWEST <= first <= last <= _HIGHEST:
        raise ConfigError(
            field,
            text,
            f"{text} is out of range",
            hint=f"give ids from {_LOWEST} to {_HIGHEST}, which no user has",
        )
    return UserRange(first, last)


BY_DEFAULT = IsolationPolicy()

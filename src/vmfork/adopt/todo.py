"""What a freeze leaves to do in each fork, as a value."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - a record's types are looked up when it is read
from dataclasses import dataclass, field

from vmfork.wire.message import Kept  # noqa: TC001 - likewise


@dataclass(frozen=True, slots=True, kw_only=True)
class Thaw:
    """What is to be done in a fork before it is handed out.

    It was found when the template was frozen. A fork's files are what they were then, so no fork has to look again. A
    template without hooks and watchers costs its forks nothing. `secrets_found` are secrets that were allowed to stay.
    `greets`: it was copied while a client spoke to its agent, which must be greeted anew before all else. `keeps`: what
    of that client's is left then. `unset`: variables that it has from the machine that it is a copy of, and that go
    where they have these values still. `disk_mib`: the machine was given a disk of that size, which its guest has not
    seen yet; 0 where it was not.
    """

    hooks: tuple[str, ...] = ()
    watchers: tuple[str, ...] = ()
    secrets_found: tuple[str, ...] = ()
    greets: bool = False
    keeps: tuple[Kept, ...] = ()
    unset: Mapping[str, str] = field(default_factory=dict)
    disk_mib: int = 0

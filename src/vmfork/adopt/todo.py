"""What a freeze leaves to do in each fork, as a value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Thaw:
    """What is to be done in a fork before it is handed out.

    It was found when the template was frozen. A fork's files are what they were then, so no fork has to look again. A
    template without hooks and watchers costs its forks nothing. `secrets_found` are secrets that were allowed to stay.
    `greets`: it was copied while a client spoke to its agent, which must be greeted anew before all else.
    """

    hooks: tuple[str, ...] = ()
    watchers: tuple[str, ...] = ()
    secrets_found: tuple[str, ...] = ()
    greets: bool = False

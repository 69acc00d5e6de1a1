"""What a keeper puts its program into before that starts (keeper/jail.c), as a value."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from vmfork.host.shipped import find_shipped

if TYPE_CHECKING:
    from pathlib import Path

    from vmfork.host.users import UserLease


@dataclass(frozen=True, slots=True, kw_only=True)
class Jail:
    """A program's surroundings. Whatever it was passed open stays open in it.

    Over the folder `root` the program's own root is mounted, where nobody else sees it; what is in `bound` is there
    under its own path, read-only, and nothing else. With `root` it has a network, IPC and UTS namespace of its own too.
    Without, it sees what is there, and can open what is in `bound` alone (Landlock); with neither, whatever it likes.
    All of them belong to a user namespace where they are `mapped`, as an ordinary user needs it. It becomes the user of
    `lease`, which the keeper holds until the program has ended. It belongs to the control groups of the folders
    `groups`, which the keeper removes then. With `outward` it has our network in place of its own, and what confines it
    lets it connect over IP. A file may have `file_mib` MiB more than is usual (64).
    """

    root: Path | None = None
    bound: tuple[str, ...] = ()
    mapped: bool = False
    lease: UserLease | None = None
    groups: tuple[str, ...] = ()
    outward: bool = False
    file_mib: int = 0

    def to_arguments(self) -> list[str]:
        """The keeper's options."""
        options = []
        if self.root is not None:
            options += ["--root", str(self.root)]
        for path in self.bound:
            options += ["--bind", path]
        for folder in self.groups:
            options += ["--group", folder]
        if self.mapped:
            options.append("--mapped")
        if self.outward:
            options.append("--outward")
        if self.file_mib:
            options += ["--file-mib", str(self.file_mib)]
        if self.lease is not None:
            options += ["--user", str(self.lease.user), "--lease", str(self.lease.fileno())]
        return options


NO_JAIL = Jail()


@cache
def find_preload() -> Path:
    """The library that opens for an emulator what it was passed (preload/README.md). `HostError` when it is missing."""
    return find_shipped(f"preload-{os.uname().machine}.so", what="the emulator's library")

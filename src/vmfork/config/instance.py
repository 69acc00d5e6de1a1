"""One vmfork on this host, as a value that is passed on as a whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmfork.config.places import Places, find_places
from vmfork.progress import ignore_progress

if TYPE_CHECKING:
    from vmfork.progress import ProgressListener


@dataclass(frozen=True, slots=True)
class Budget:
    """How much memory the templates may hold together, in MiB (0: any), and which of them stay whatever comes."""

    mib: int = 0
    keep: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Instance:
    """The folders that one vmfork keeps, whoever is told where its long work is, and what its templates may hold."""

    places: Places = field(default_factory=find_places)
    progress: ProgressListener = ignore_progress
    budget: Budget = Budget()

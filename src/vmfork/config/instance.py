"""One vmfork on this host, as a value that is passed on as a whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmfork.config.places import Places, find_places
from vmfork.progress import ignore_progress

if TYPE_CHECKING:
    from vmfork.progress import ProgressListener


@dataclass(frozen=True, slots=True)
class Instance:
    """The folders that one vmfork keeps, and whoever is told where its long work is."""

    places: Places = field(default_factory=find_places)
    progress: ProgressListener = ignore_progress

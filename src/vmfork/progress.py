"""How long work tells where it is. A frozen event and the shape of whoever listens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One step of a long task.

    `task` names the work (`image`, `template`), `step` what is being done now, in words a user can read.
    `fraction` is 0.0 to 1.0 of the whole task, or `None` where it cannot be known.
    """

    task: str
    step: str
    fraction: float | None = None


class ProgressListener(Protocol):
    """Called on the event loop; must return quickly and must not raise."""

    def __call__(self, event: Progress, /) -> None: ...


def ignore_progress(_event: Progress, /) -> None:
    """The listener for whoever does not care."""

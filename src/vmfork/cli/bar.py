"""A progress bar on standard error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from vmfork.progress import Progress as Event


class Bar:
    """Owner of a bar that is drawn. `close` wipes it."""

    def __init__(self) -> None:
        text = TextColumn("{task.description}", markup=False)
        console = Console(stderr=True)
        self._bar = Progress(SpinnerColumn(), text, BarColumn(), TimeElapsedColumn(), console=console, transient=True)
        self._task = self._bar.add_task("", total=None)
        self._bar.start()

    def show(self, event: Event) -> None:
        """The bar says where the work is."""
        total = None if event.fraction is None else 1.0
        step = f"{event.task}: {event.step}"
        self._bar.update(self._task, description=step, completed=event.fraction or 0.0, total=total)

    def close(self) -> None:
        """Nothing is left of it on the screen."""
        self._bar.stop()

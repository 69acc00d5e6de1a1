"""A template built in the background, while requests are booted."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from vmfork.factory.health import Health
from vmfork.journal import about, code_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_log = logging.getLogger(__name__)


class BackgroundBuild:
    """Owner of at most one build at a time. After one that failed it rests before it begins another."""

    def __init__(self, build: Callable[[], Awaitable[None]]) -> None:
        self._build = build
        self._task: asyncio.Task[None] | None = None
        self._health = Health(limit=1)

    @property
    def is_running(self) -> bool:
        return self._task is not None and not self._task.done()

    @property
    def last_error(self) -> str:
        """Why the last build failed; empty after one that succeeded."""
        return self._health.last_error

    def begin(self) -> None:
        """A build is under way, unless one failed a moment ago."""
        if not self.is_running and not self._health.is_quarantined:
            self._task = asyncio.create_task(self._run())

    def cancel(self) -> None:
        """A build that is under way is being broken off."""
        if self._task is not None and self._task.get_loop().is_running():
            self._task.cancel()

    async def aclose(self) -> None:
        """No build is under way; nothing half-made is left."""
        self.cancel()
        if self._task is not None:
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        try:
            await self._build()
        except Exception as error:  # noqa: BLE001 - whatever it is, machines are booted meanwhile
            said = about("template.failed", error=code_of(error))
            _log.warning("the template could not be built: %s", error, extra=said)
            self._health.note_failure(error)
        else:
            self._health = Health(limit=1)

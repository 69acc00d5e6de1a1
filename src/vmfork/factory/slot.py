"""One entry of a factory's configuration: a template, a server, or boots; with its bases once it could be opened."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmfork.errors import Closed, DeadlineExceeded, HostError, TemplateError, VMForkError
from vmfork.factory.choice import Miss
from vmfork.factory.health import Health

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from vmfork.config import VMConfig
    from vmfork.factory.kind import Base
    from vmfork.factory.template import Past

# What may be there a moment later: a template that is not built yet, a server that is not up yet.
ABSENT = (TemplateError, HostError, DeadlineExceeded, Closed)


@dataclass(slots=True, eq=False)
class Watched:
    """A base and how it has been doing."""

    base: Base
    health: Health = field(default_factory=Health)


class Slot:
    """Owner of the bases of one entry. Without any it is absent: `open` is tried again, or a build fills it.

    `template` is the name of its template, empty for a server and for boots. `past` is how that template was made the
    last time. `miss` is why the slot gave no base when it was last asked.
    """

    def __init__(
        self,
        open_bases: Callable[[], Awaitable[Sequence[Base]]] | None,
        *,
        template: str = "",
        past: Past | None = None,
    ) -> None:
        self.template = template
        self.watched: list[Watched] = []
        self.miss = Miss("template-not-ready", f"template {template!r} is not ready")
        self._open_bases = open_bases
        self._past = past
        self._opening = asyncio.Lock()
        self._health = Health(limit=1)

    @property
    def recipe(self) -> str:
        """Names what was done to its machines beyond booting; empty when nothing was, or none is known."""
        if self.watched:
            return self.watched[0].base.kind.recipe
        return self._past.recipe if self._past else ""

    @property
    def is_warmed(self) -> bool:
        """Whether its machines are more than booted ones, as far as is known."""
        if self.watched:
            return any(watched.base.kind.is_warmed for watched in self.watched)
        return bool(self.recipe)

    @property
    def past_config(self) -> VMConfig | None:
        """The configuration of its template, when it was last made."""
        return self._past.config if self._past else None

    def may_offer(self, template: str) -> bool:
        """Whether it has machines of that template, or cannot tell because it is an absent server."""
        if not self.watched:
            return not self.template or self.template == template
        return any(watched.base.kind.template == template for watched in self.watched)

    async def open(self) -> None:
        """It has bases, unless a build is to fill it. Raises what opening them raises."""
        async with self._opening:
            if not self.watched and self._open_bases is not None:
                self.fill(await self._open_bases())

    async def try_open(self) -> None:
        """It has bases, or `miss` says why not. An attempt that took all its time is not repeated for a while."""
        if self.watched or self._health.is_quarantined:
            return
        try:
            await self.open()
        except ABSENT as error:
            self.note_absence(error)

    def fill(self, bases: Sequence[Base]) -> None:
        """These are its bases."""
        self.watched = [Watched(base) for base in bases]

    def note_absence(self, error: VMForkError) -> None:
        """It has no bases, because of `error`."""
        self.miss = Miss(error.code, error.message)
        if isinstance(error, DeadlineExceeded):
            self._health.note_failure(error)

    async def aclose(self) -> None:
        """Its bases are closed."""
        watched, self.watched = self.watched, []
        await asyncio.gather(*(each.base.aclose() for each in watched))

"""What happens to files in the guest, told as it happens."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from vmfork.agent.connection import Connection
from vmfork.agent.deadline import deadline
from vmfork.agent.exchange import Lane
from vmfork.agent.files import explain_file
from vmfork.agent.flow import Inflow
from vmfork.border import guarded
from vmfork.errors import Closed
from vmfork.host.dropped import close_dropped
from vmfork.owner import Owner
from vmfork.wire import message
from vmfork.wire.event import EventParser

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractContextManager

    from vmfork.agent.exchange import Exchange, Explain, Grant
    from vmfork.host.bound import Bound
    from vmfork.wire.event import FileEvent

_END_LIMIT_S = 5.0


class _Line(Protocol):
    """What a watch needs of the connection that it came over."""

    bound: Bound
    lost: Exception | None

    def abandon(self, exchange: Exchange) -> None: ...


class _Events(Inflow):
    """What came of them. It lasts as a program does, and so takes no place of those who copy files."""

    lane = Lane.PROGRAMS

    def __init__(
        self,
        stream: int,
        path: str,
        *,
        grant: Grant,
        explain: Explain,
        making_sense: Callable[[], AbstractContextManager[None]],
    ) -> None:
        super().__init__(stream, widened=0, grant=grant, explain=explain)
        self.waiting_events: deque[FileEvent] = deque()
        self._making_sense = making_sense
        self._parser = EventParser(path)

    async def take_some(self) -> bool:
        """Whether more came than there was; not at the end."""
        data = await self.next_bytes()
        if not data:
            return False
        with self._making_sense():
            self.waiting_events += self._parser.feed(data)
        self.take(len(data))
        return True

    async def wait_ready(self) -> None:
        """Whatever happens from now on is told."""
        while not self._parser.is_ready and await self.take_some():
            pass


@guarded
class Watch(Owner):
    """A file or folder of the guest that is watched, until `aclose()` or the end of the `async with` block.

    What happens waits here, 128 KiB of it, then in the guest's kernel (16,384 events, unless that was told otherwise),
    and then is lost: an event `overflow` says so.
    """

    path: str
    """What is watched."""

    def __init__(self, line: _Line, flow: _Events, path: str) -> None:
        self.path = path
        self._line = line
        self._flow = flow
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<Watch {self.path!r}, {'ended' if self._flow.has_ended else 'open'}>"

    def __del__(self) -> None:
        if not (self._is_closed or self._flow.has_ended) and self._line.lost is None:
            close_dropped(self, self._line.bound, self._end)

    async def next(self, *, timeout_s: float | None = None) -> FileEvent | None:
        """What happened next; `None` once nothing more can: what was watched is gone.

        A deadline that passes, or a cancellation, loses nothing: the next call gives it.
        """
        if self._is_closed:
            raise Closed(f"the watch of {self.path}")
        self._line.bound.check()
        async with deadline(f"waiting for what happens in {self.path}", timeout_s):
            while not self._flow.waiting_events:
                if not await self._flow.take_some():
                    return None
        return self._flow.waiting_events.popleft()

    async def events(self) -> AsyncIterator[FileEvent]:
        """What happens, as it happens, until the end. The agent's loss is raised after what came before it."""
        while (event := await self.next()) is not None:
            yield event

    async def aclose(self) -> None:
        """Nothing is watched any more."""
        self._is_closed = True
        self._flow.waiting_events.clear()
        if self._flow.has_ended or not self._line.bound.is_here:
            return
        self._end()
        with suppress(TimeoutError):  # a guest that cannot has no better answer later
            async with asyncio.timeout(_END_LIMIT_S):
                await asyncio.wait([self._flow.reply])

    def _end(self) -> None:
        if not self._line.bound.is_stranded:
            self._line.abandon(self._flow)


class WatchRequests(Connection):
    """Changes of files."""

    async def watch(self, path: str, *, recursive: bool = False, timeout_s: float | None = 60.0) -> Watch:
        """What happens to the file or folder is told; with `recursive`, to all below it, but for what is mounted."""
        explain = explain_file("watch", path)
        flow = _Events(self._new_stream(), path, grant=self.grant, explain=explain, making_sense=self.making_sense)
        request = message.watch_request(flow.stream, path, recursive=recursive)
        try:
            async with deadline(f"watching {path}", timeout_s):
                await self._begin_in_turn(flow, lambda _: request)
                await flow.wait_ready()
        except BaseException:
            self.abandon(flow)
            raise
        return Watch(self, flow, path)

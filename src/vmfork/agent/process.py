"""A program running in the guest."""

from __future__ import annotations

import asyncio
import signal as signals
from typing import TYPE_CHECKING, Protocol

from vmfork.agent.deadline import deadline
from vmfork.agent.flow import pour
from vmfork.border import guarded
from vmfork.errors import Closed, ConfigError, DeadlineExceeded
from vmfork.host.dropped import close_dropped
from vmfork.owner import Owner
from vmfork.wire.command import check_window, find_signal
from vmfork.wire.frame import Channel, encode_eof
from vmfork.wire.given import check_content
from vmfork.wire.message import ExecStatus, parse_exec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from contextlib import AbstractContextManager

    from vmfork.agent.exchange import Exchange, StreamedRun
    from vmfork.host.bound import Bound
    from vmfork.wire.command import Window

_END_LIMIT_S = 5.0


class ProcessLine(Protocol):
    """What a process needs of the connection it runs over."""

    bound: Bound
    lost: Exception | None

    def send(self, data: bytes) -> None: ...

    async def wait_room(self) -> None: ...

    def making_sense(self) -> AbstractContextManager[None]: ...

    async def kill(self, stream: int, signal: int, *, timeout_s: float | None) -> None: ...

    async def resize(self, stream: int, window: Window, *, timeout_s: float | None) -> None: ...

    def abandon(self, exchange: Exchange) -> None: ...


@guarded
class GuestProcess(Owner):
    """A program in the guest, from its start to its end. Its output waits in the guest until `output` takes it.

    `aclose()`, or leaving the `async with` block, kills it with everything that it started, if it still runs. Only a
    daemon whose parent has ended goes on, as one that a program leaves when it ends by itself.
    """

    pid: int
    """The process id in the guest."""
    name: str
    """What it is called in errors: its command line."""

    def __init__(
        self,
        line: ProcessLine,
        exchange: StreamedRun,
        *,
        name: str,
        pid: int,
        has_stdin: bool,
        has_terminal: bool = False,
    ) -> None:
        self.pid = pid
        self.name = name
        self._line = line
        self._exchange = exchange
        self._stdin_closed = not (has_stdin or has_terminal)
        self._has_terminal = has_terminal

    def __repr__(self) -> str:
        return f"<GuestProcess {self.pid} {self.name!r}, {'ended' if self.has_ended else 'running'}>"

    def __del__(self) -> None:
        if not self.has_ended and self._line.lost is None:
            close_dropped(self, self._line.bound, self._end)

    @property
    def has_ended(self) -> bool:
        """The program has ended and the agent said so, or the agent is gone."""
        return self._exchange.has_ended

    @property
    def unread(self) -> Sequence[tuple[Channel, bytes]]:
        """What came of its output and `output` has not given, at most 65,536 bytes of each stream. It stays there."""
        return tuple(self._exchange.waiting)

    async def output(self) -> AsyncIterator[tuple[Channel, bytes]]:
        """What the program writes, as it comes, until its end. The agent's loss is raised after what came before it.

        A piece counts as taken when the next one is asked for. When the consumer stops, so does the program, once it
        has written 65,536 bytes more to a channel.
        """
        run = self._exchange
        self._line.bound.check()
        while True:
            while run.waiting:
                channel, data = run.waiting.popleft()
                yield channel, data
                if not run.has_ended:
                    run.take(channel, len(data))
            if run.has_ended:
                run.reply.result()
                return
            await run.arrived.next()

    async def write_stdin(self, data: bytes, *, timeout_s: float | None = None) -> None:
        """The guest has the bytes; the program may not have read them yet.

        Waits while 65,536 bytes are unread. When the program has ended, or closed its standard input, the bytes are
        thrown away in silence; `wait` tells the end. Raises `Closed` after `close_stdin`, and when the program was
        started without `stdin=True`. A terminal takes what is typed into it: its line discipline makes signals of
        control characters, and cuts lines after 4,095 bytes.
        """
        if self._stdin_closed:
            raise Closed(f"the standard input of {self.name}")
        self._line.bound.check()
        async with deadline(f"writing to {self.name}", timeout_s):
            content = check_content(data, field="data")
            await pour(self._exchange, content, send=self._line.send, wait_room=self._line.wait_room)
        if self._exchange.has_ended:
            self._exchange.reply.result()

    async def close_stdin(self) -> None:
        """The program reads the end of its standard input. Closing twice is no error.

        At a terminal the key for the end of input is typed once, as Ctrl-D is (twice where a line was begun): whoever
        reads lines there reads the end, a program that reads keys reads the key, and another that reads after it waits.
        """
        self._line.bound.check()
        if not self._stdin_closed and not self.has_ended:
            self._line.send(encode_eof(self._exchange.stream, Channel.CONTENT))
        self._stdin_closed = True

    async def kill(self, signal: int | str = signals.SIGKILL, *, timeout_s: float | None = 10.0) -> None:
        """The signal was sent to the program's process group. Nothing happens when it has ended.

        A number, or a name such as `SIGINT` or `INT`. SIGKILL was sent to everything that it started. At a terminal,
        the job in the foreground is sent SIGINT by `write_stdin(b"\\x03")`, as Ctrl-C does.
        """
        number = find_signal(signal)
        if not self.has_ended:
            await self._line.kill(self._exchange.stream, number, timeout_s=timeout_s)

    async def resize(self, rows: int, columns: int, *, timeout_s: float | None = 10.0) -> None:
        """The program's terminal has that size, and who runs in it was told (SIGWINCH). Nothing once it has ended.

        Raises `ConfigError` when it has no terminal.
        """
        window = check_window(rows, columns)
        if not self._has_terminal:
            raise ConfigError("rows", rows, f"{self.name} has no terminal", hint="start it with pty=(rows, columns)")
        if not self.has_ended:
            await self._line.resize(self._exchange.stream, window, timeout_s=timeout_s)

    async def wait(self, *, timeout_s: float | None = None) -> ExecStatus:
        """How the program ended. Takes no output: a program that wrote 65,536 bytes waits until `output` takes them.

        A deadline that passes, or a cancellation, changes nothing: the program runs on and can be waited for again.
        """
        self._line.bound.check()
        async with deadline(f"waiting for {self.name}", timeout_s):
            answer = await asyncio.shield(self._exchange.reply)
        with self._line.making_sense():
            return parse_exec(answer)

    async def aclose(self) -> None:
        """The program does not run any more, and its output is thrown away."""
        if self.has_ended or not self._line.bound.is_here:
            # In a forked child the program is the parent's. Closed from another event loop, it ends with its machine.
            return
        self._end()
        try:
            async with deadline(f"ending {self.name}", _END_LIMIT_S):
                await asyncio.wait([self._exchange.reply])
        except DeadlineExceeded:
            # It was sent SIGKILL; a guest that cannot deliver that has no better answer later.
            return

    def _end(self) -> None:
        """SIGKILL is on its way. Where the event loop was closed, the program ends with its machine."""
        if not self._line.bound.is_stranded:
            self._exchange.waiting.clear()
            self._line.abandon(self._exchange)

"""Copies of files and trees, between the host and the guest."""

from __future__ import annotations

from collections import deque
from contextlib import closing
from copy import copy
from typing import TYPE_CHECKING, Protocol

from vmfork.agent.connection import Connection
from vmfork.agent.deadline import deadline
from vmfork.agent.files import explain_file
from vmfork.agent.flow import Inflow, Outpour
from vmfork.border import CallbackError, translated
from vmfork.copied import Tally
from vmfork.errors import ProtocolError, VMForkError
from vmfork.progress import Progress, ignore_progress
from vmfork.wire import message
from vmfork.wire.frame import FIRST_CREDIT, Channel, encode_credit

if TYPE_CHECKING:
    from vmfork.copied import Copied
    from vmfork.host.packing import Batch, Made
    from vmfork.progress import ProgressListener

# As guest/unpack.c has it.
_MORE_CREDIT = FIRST_CREDIT
# While the host writes what came, the guest reads on. With what the protocol begins with it is a megabyte.
_WIDE_WINDOW = 15 * FIRST_CREDIT
# What came goes to a thread in pieces of this size: each way there takes about 150 us.
_TAKEN_AT_ONCE = 4 * FIRST_CREDIT


class Source(Protocol):
    """The bytes of a tree, read as they are asked for. `shown` is what it is called in errors."""

    shown: str

    async def next_batch(self) -> Batch: ...

    def close(self) -> None: ...


class Sink(Protocol):
    """Takes the bytes of a tree. `copied` is what is whole so far, `at` the name that came last."""

    @property
    def operation(self) -> str: ...

    @property
    def copied(self) -> Copied: ...

    @property
    def at(self) -> str: ...

    async def open(self) -> None: ...

    async def take(self, data: bytes | bytearray) -> None: ...

    async def finish(self, entries: int, size_bytes: int) -> None: ...

    def close(self) -> None: ...


class _Arrivals:
    """What of a tree is in its place: names in the order in which they are sent, as the agent uses their bytes up."""

    def __init__(self) -> None:
        self.tally = Tally()
        self._sent: deque[tuple[int, Made]] = deque()

    def note(self, made: list[tuple[int, Made]]) -> None:
        """These are about to be sent."""
        self._sent += made

    def count(self, taken: int) -> None:
        """The agent used up that many bytes."""
        while self._sent and self._sent[0][0] <= taken:
            _, made = self._sent.popleft()
            if made.kind == "other":
                self.tally.skip(made.path)
            else:
                self.tally.add(made.kind, made.path, made.size_bytes)

    def count_all(self) -> None:
        """The agent used up everything."""
        self.count(2**63)

    @property
    def at(self) -> str:
        """The name that comes next."""
        return self._sent[0][1].path if self._sent else "."


class CopyRequests(Connection):
    """Copies. A file arrives whole or not at all. The error of one that breaks off tells what had arrived."""

    async def put(
        self,
        source: Source,
        path: str,
        *,
        parents: bool = False,
        archive: bool = False,
        size: int = 0,
        total: int = 0,
        progress: ProgressListener = ignore_progress,
        timeout_s: float | None = None,
    ) -> Copied:
        """The file or folder that `source` reads is at `path`, or the file in the folder there. The source is closed.

        `size` is how many bytes of content it has, `total` the same for `progress`; 0 where that is not known.
        """
        with closing(source):
            explain = explain_file("copying to", path)
            flow = Outpour(
                self._new_stream(), widened=_MORE_CREDIT, send=self.send, wait_room=self.wait_room, explain=explain
            )
            request = message.put_request(flow.stream, path, parents=parents, archive=archive, size=size)
            arrivals = _Arrivals()
            try:
                async with deadline(f"copying {source.shown} to {path}", timeout_s):
                    await self._begin_in_turn(flow, lambda _: request)
                    while (batch := await source.next_batch()).has_any:
                        arrivals.note(batch.made)
                        await flow.pour(batch.data)
                        arrivals.count(flow.taken)
                        progress(_tell("put", arrivals.tally.copied, total))
                    flow.end()
                    entries, _ = message.parse_copied(await flow.reply)
            except Exception as error:  # noqa: BLE001 - whatever ends a copy, its error tells what arrived
                self.end_with_nonsense(error)
                arrivals.count(flow.taken)
                raise _broken(error, arrivals.tally.copied, arrivals.at) from _cause(error)
            finally:
                self.abandon(flow)
            arrivals.count_all()
            with self.making_sense():
                if entries != arrivals.tally.entries:
                    raise ProtocolError(f"the guest made {entries} names of {arrivals.tally.entries}")
            return arrivals.tally.copied

    async def get(
        self,
        path: str,
        sink: Sink,
        *,
        progress: ProgressListener = ignore_progress,
        timeout_s: float | None = None,
    ) -> Copied:
        """`sink`, which is closed, has taken the guest's file or folder at `path`."""
        with closing(sink):
            explain = explain_file("copying from", path)
            flow = Inflow(self._new_stream(), widened=_WIDE_WINDOW, grant=self.grant, explain=explain)
            request = message.get_request(flow.stream, path) + encode_credit(flow.stream, Channel.CONTENT, _WIDE_WINDOW)
            try:
                await sink.open()
                async with deadline(sink.operation, timeout_s):
                    await self._begin_in_turn(flow, lambda _: request)
                    while data := await flow.next_bytes(least=_TAKEN_AT_ONCE):
                        await sink.take(data)
                        flow.take(len(data))
                        progress(_tell("get", sink.copied, 0))
                    await sink.finish(*message.parse_copied(flow.reply.result()))
            except Exception as error:  # noqa: BLE001 - whatever ends a copy, its error tells what arrived
                self.end_with_nonsense(error)
                raise _broken(error, sink.copied, sink.at) from _cause(error)
            finally:
                self.abandon(flow)
            return sink.copied


def _tell(task: str, copied: Copied, total: int) -> Progress:
    return Progress(task=task, step=copied.last, fraction=min(1.0, copied.size_bytes / total) if total else None)


def _broken(error: Exception, copied: Copied, at: str) -> Exception:
    """The error, which tells what had arrived."""
    if isinstance(error, CallbackError):
        return error
    own = copy(translated(error))  # the reason that a line was lost is everybody's
    own.arrived = copied
    own.message = f"{own.message} (at {at!r}; {copied})"
    return own


def _cause(error: Exception) -> BaseException | None:
    """What the error of ours was made of."""
    return error.__cause__ if isinstance(error, (VMForkError, CallbackError)) else error

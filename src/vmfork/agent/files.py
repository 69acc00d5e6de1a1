"""The requests about files in the guest."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING

from vmfork.agent.connection import Connection
from vmfork.agent.deadline import deadline
from vmfork.agent.exchange import Download, LastingExchange, Upload
from vmfork.agent.flow import Inflow
from vmfork.errors import GuestFileError, LimitExceeded, ProtocolError
from vmfork.wire import message
from vmfork.wire.code import ErrorCode
from vmfork.wire.frame import FIRST_WITH_ROOM, Channel, encode_credit
from vmfork.wire.given import MOST_BYTES
from vmfork.wire.listing import FolderNames, Listing, TreeNames

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmfork.agent.exchange import Explain
    from vmfork.wire.message import DirEntry, Failure, FileStat

# More credit from the start, for content that is kept anyway: else a transfer costs a round trip every 64 KiB.
_WIDE_WINDOW = 1024 * 1024
# Of names less comes at once: reading a thousand takes 3 ms, in which nobody else has the loop.
_LIST_WINDOW = 128 * 1024
_MANY = 20_000

_NO_SPACE = "remove something there, or take a machine with more memory (memory_mib): its files lie in it"
_TOO_MUCH = "take more (max_bytes), or take it as a program writes it: vm.start(['cat', ...]) and its output()"
_TOO_MANY = "take more (max_bytes), or list the folders below one by one"
_OLDER = "the agent in the guest is older than this vmfork: build the image and its templates again"
_NEW_FILE_MODE = 0o644


def explain_file(operation: str, path: str) -> Explain:
    """What becomes of the agent's refusal."""

    def explain(failure: Failure) -> GuestFileError:
        if failure.code == ErrorCode.NO_SPACE:
            return GuestFileError(operation, path, failure.code, failure.message, hint=_NO_SPACE)
        if failure.code == ErrorCode.UNSUPPORTED:
            return GuestFileError(operation, path, failure.code, failure.message, hint=_OLDER)
        words = os.strerror(failure.errno) if failure.errno else failure.message
        return GuestFileError(operation, path, failure.code, words)

    return explain


def _explain_move(path: str) -> Explain:
    def explain(failure: Failure) -> GuestFileError:
        error = explain_file("move", path)(failure)
        assert isinstance(error, GuestFileError)
        if failure.errno == errno.EXDEV:
            error.hint = "it would have to be copied: vm.exec(['mv', ...]) does"
        return error

    return explain


def _names_request(stream: int, path: str) -> bytes:
    return message.get_request(stream, path, names=True)


def _widen(stream: int) -> bytes:
    return encode_credit(stream, Channel.CONTENT, _WIDE_WINDOW)


class FileRequests(Connection):
    """Files in the guest. Paths are absolute. Raises `GuestFileError` for whatever the guest refuses."""

    async def read_file(
        self,
        path: str,
        *,
        offset: int = 0,
        length: int | None = None,
        max_bytes: int | None = MOST_BYTES,
        timeout_s: float | None = 60.0,
    ) -> bytes:
        """What the regular file holds from `offset` on, at most `length` bytes.

        Raises `LimitExceeded` when that is more than `max_bytes`.
        """
        download = self._new_download("read", path, f"reading {path}", max_bytes)
        request = message.read_request(download.stream, path, offset, length) + _widen(download.stream)
        answer = await self._ask(download, request, download.operation, timeout_s)
        content = download.content
        with self.making_sense():
            sent, _ = message.parse_read(answer)
            if len(content) != sent:
                raise ProtocolError(f"{len(content)} bytes of {path} came, the agent sent {sent}")
        return content

    async def write_file(
        self,
        path: str,
        data: bytes,
        *,
        mode: int | None = None,
        append: bool = False,
        parents: bool = False,
        exclusive: bool = False,
        timeout_s: float | None = 60.0,
    ) -> None:
        """The file holds `data`, or ends with it for `append`. Without a mode it keeps its own; a new one has 0644.

        `parents` makes missing folders; with `exclusive` a file that exists is an error. The content of a regular file
        appears whole or not at all. A failure or a cancel may leave a part of what is appended, or written to a pipe, a
        device, a file of the kernel's, or a file with several names.
        """
        upload = Upload(self._new_stream(), data, send=self.send, explain=explain_file("write", path))

        def encode(protocol: int) -> bytes:
            is_old = protocol < FIRST_WITH_ROOM
            return message.write_request(
                upload.stream,
                path,
                _NEW_FILE_MODE if mode is None and is_old else mode,
                append=append,
                parents=parents,
                exclusive=exclusive,
                size=None if is_old else len(data),
            )

        await self._ask(upload, encode, f"writing {path}", timeout_s)

    async def stat(self, path: str, *, timeout_s: float | None = 30.0) -> FileStat:
        """What is known of the file; a link is not followed."""
        exchange = self._new_exchange(explain_file("stat", path))
        request = message.stat_request(exchange.stream, path)
        answer = await self._ask(exchange, request, f"looking at {path}", timeout_s)
        with self.making_sense():
            return message.parse_stat(answer)

    async def exists(self, path: str) -> bool:
        """Whether there is something at the path; a link counts, wherever it leads."""
        try:
            await self.stat(path)
        except GuestFileError as error:
            if error.reason in (ErrorCode.NOT_FOUND, ErrorCode.NOT_DIRECTORY):
                return False
            raise
        return True

    async def list_dir(
        self, path: str, *, max_bytes: int | None = MOST_BYTES, timeout_s: float | None = 60.0
    ) -> tuple[DirEntry, ...]:
        """What the folder holds, sorted by name. `LimitExceeded` when that takes more than `max_bytes` of memory."""
        return await self._list(path, message.list_request, Listing(FolderNames(), max_bytes), timeout_s)

    async def remove(self, path: str, *, recursive: bool = False, timeout_s: float | None = 60.0) -> None:
        """The file or empty folder is gone; with `recursive` a folder and what is below it, on its file system."""
        exchange = LastingExchange(self._new_stream(), explain=explain_file("remove", path))
        request = message.remove_request(exchange.stream, path, recursive=recursive)
        await self._ask(exchange, request, f"removing {path}", timeout_s)

    async def make_dir(
        self, path: str, *, mode: int = 0o755, parents: bool = False, timeout_s: float | None = 30.0
    ) -> None:
        """The folder is there. With `parents` those above it too, and one that exists is no error."""
        exchange = self._new_exchange(explain_file("make", path))
        request = message.make_dir_request(exchange.stream, path, mode, parents=parents)
        await self._ask(exchange, request, f"making {path}", timeout_s)

    async def list_tree(
        self, path: str, *, max_bytes: int | None = MOST_BYTES, timeout_s: float | None = 60.0
    ) -> tuple[DirEntry, ...]:
        """All that is in and below the folder, by paths from it on, sorted. `LimitExceeded` as by `list_dir`."""
        return await self._list(path, _names_request, Listing(TreeNames(), max_bytes), timeout_s)

    async def _list(
        self, path: str, encode: Callable[[int, str], bytes], listing: Listing, timeout_s: float | None
    ) -> tuple[DirEntry, ...]:
        """Each piece is read as it comes: a list of names takes several times what its bytes do."""
        operation = f"listing {path}"
        flow = Inflow(self._new_stream(), widened=_LIST_WINDOW, grant=self.grant, explain=explain_file("list", path))
        request = encode(flow.stream, path) + encode_credit(flow.stream, Channel.CONTENT, _LIST_WINDOW)
        try:
            async with deadline(operation, timeout_s):
                await self._begin_in_turn(flow, lambda _: request)
                while data := await flow.next_bytes():
                    with self.making_sense():
                        has_room = listing.add(data)
                    if not has_room:
                        raise LimitExceeded(operation, listing.max_bytes or 0, hint=_TOO_MANY)
                    flow.take(len(data))
        finally:
            self.abandon(flow)
        with self.making_sense():
            listing.check_end(flow.reply.result())
        # A guest may list a million names, which takes a second to sort: other machines of this process have the loop.
        return await asyncio.to_thread(listing.sort) if len(listing) > _MANY else listing.sort()

    async def move(self, path: str, to: str, *, timeout_s: float | None = 30.0) -> None:
        """What was at `path` is at `to`, in the place of a file or an empty folder there."""
        exchange = self._new_exchange(_explain_move(path))
        request = message.move_request(exchange.stream, path, to)
        await self._ask(exchange, request, f"moving {path}", timeout_s)

    async def change(
        self,
        path: str,
        *,
        mode: int | None = None,
        user: str = "",
        group: str = "",
        timeout_s: float | None = 30.0,
    ) -> None:
        """The file has that mode, and that owner, each where it was given. A link is followed."""
        exchange = self._new_exchange(explain_file("change", path))
        request = message.change_request(exchange.stream, path, mode=mode, user=user, group=group)
        await self._ask(exchange, request, f"changing {path}", timeout_s)

    def _new_download(self, verb: str, path: str, operation: str, max_bytes: int | None) -> Download:
        explain = explain_file(verb, path)
        return Download(
            self._new_stream(),
            operation,
            max_bytes,
            widened=_WIDE_WINDOW,
            hint=_TOO_MUCH,
            grant=self.grant,
            explain=explain,
        )

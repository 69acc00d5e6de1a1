"""The QMP session of one QEMU, through the qemu.qmp package, with a transcript for when it goes wrong."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self

from qemu.qmp import ConnectError, ExecuteError, QMPClient
from qemu.qmp.error import QMPError
from qemu.qmp.qmp_client import NegotiationError

from vmfork.errors import DeadlineExceeded, HostError, VMForkError
from vmfork.hypervisor.base import HANGS

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable, Iterator

    from qemu.qmp.message import Message

_CONNECT_LIMIT_S = 20.0
_GREETINGS = 5
_COMMAND_LIMIT_S = 30.0

# The package logs every lost connection as an error; ours are lost when a machine ends, which is no error.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)

_closing: set[asyncio.Task[None]] = set()


class Monitor:
    """Owner of a QMP connection."""

    def __init__(self, client: QMPClient) -> None:
        self._client = client
        self._loop = asyncio.get_running_loop()
        self.transcript: deque[str] = deque(maxlen=50)

    @classmethod
    async def open(cls, connect: Callable[[], socket.socket]) -> Self:
        """A monitor whose greeting was read and whose capabilities are negotiated, over a socket that `connect` gave.

        Between taking the capabilities and saying so QEMU may tell an event, such as the end of a job (seen with 10.0),
        which the package takes for a refusal: then QEMU is asked anew. The socket is the monitor's own, or closed.
        """
        for left in reversed(range(_GREETINGS)):
            try:
                return await cls._greet(connect())
            except QMPError as error:
                if not left or not isinstance(error, ConnectError) or not isinstance(error.exc, NegotiationError):
                    raise HostError(f"QEMU's monitor did not answer: {error}") from error
        raise AssertionError  # the last of them returned or raised

    @classmethod
    async def _greet(cls, connected: socket.socket) -> Self:
        client = QMPClient("vmfork")
        with ExitStack() as on_failure:
            # A connect that is cancelled before its first step never had the socket. Any other has closed it already,
            # and closing it again does nothing.
            on_failure.callback(connected.close)
            try:
                await asyncio.wait_for(client.connect(connected), _CONNECT_LIMIT_S)
            except TimeoutError as error:
                raise DeadlineExceeded("connecting to QEMU's monitor", _CONNECT_LIMIT_S, hint=HANGS) from error
            on_failure.pop_all()
        return cls(client)

    async def execute(self, command: str, **arguments: Any) -> Any:
        """What QEMU returned for `command`. Raises `HostError` with the transcript when it refused or is gone."""
        self.transcript.append(f"-> {command} {json.dumps(arguments)}")
        try:
            result = await asyncio.wait_for(self._client.execute(command, arguments or None), _COMMAND_LIMIT_S)
        except TimeoutError as error:
            detail = "\n".join(self.transcript)
            raise DeadlineExceeded(f"QEMU's {command}", _COMMAND_LIMIT_S, hint=HANGS, detail=detail) from error
        except QMPError as error:
            self.transcript.append(f"<- {error}")
            what = "QEMU refused" if isinstance(error, ExecuteError) else "QEMU's monitor was lost at"
            raise HostError(f"{what} {command}: {error}", log="\n".join(self.transcript)) from error
        self.transcript.append(f"<- {json.dumps(result)}")
        return result

    @asynccontextmanager
    async def lend(self, fd: int) -> AsyncIterator[str]:
        """QEMU has a copy of `fd` inside of the block, and opens it by the name that the block is given.

        It can be opened with exactly the access that it has (QMP reference, add-fd).
        """
        self._client.send_fd_scm(fd)
        added = await self.execute("add-fd")
        try:
            yield f"/dev/fdset/{added['fdset-id']}"
        finally:
            with suppress(VMForkError):  # what went wrong in the block is what is told
                await self.execute("remove-fd", **{"fdset-id": added["fdset-id"]})

    @contextmanager
    def listen(self, *names: str) -> Iterator[AsyncIterator[Message]]:
        """The events of these names as they come, from the beginning of the block on. They have no end."""
        with self._client.listener(names) as listener:
            yield aiter(listener)

    async def aclose(self) -> None:
        """The connection is closed."""
        # The machine ended first, which is how most sessions end.
        with suppress(QMPError, EOFError, OSError):
            await self._client.disconnect()

    def drop(self) -> None:
        """Nobody uses the connection any more: it is closed as soon as its event loop, if that runs, comes to it."""
        if self._loop.is_running():
            task = self._loop.create_task(self.aclose())
            _closing.add(task)  # the loop itself holds tasks weakly
            task.add_done_callback(_closing.discard)

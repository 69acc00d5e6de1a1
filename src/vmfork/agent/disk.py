"""The request about the disk that a guest writes to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.agent.connection import Connection
from vmfork.agent.exchange import explain_plainly
from vmfork.errors import GuestError
from vmfork.wire import message
from vmfork.wire.code import ErrorCode
from vmfork.wire.frame import Opcode, encode_request

if TYPE_CHECKING:
    from vmfork.wire.message import DiskReading, Failure

_TOO_OLD = "build the image and its templates again with this vmfork"


class DiskRequests(Connection):
    """A disk that its machine was given after the guest had booted."""

    async def mount_disk(self, *, timeout_s: float | None = 30.0) -> DiskReading:
        """The guest has found the disk and mounted it at `/scratch`; what it shows of it.

        Raises `GuestError` when it finds none, when its kernel cannot mount it, or when its agent is too old to look.
        Nothing is mounted then.
        """
        exchange = self._new_exchange(_explain)
        request = encode_request(exchange.stream, Opcode.DISK)
        answer = await self._ask(exchange, request, "mounting the disk of the guest", timeout_s)
        with self.making_sense():
            return message.parse_disk(answer)


def _explain(failure: Failure) -> GuestError:
    if failure.code == ErrorCode.UNSUPPORTED:
        return GuestError("the agent in this machine takes no disk", hint=_TOO_OLD)
    return explain_plainly(failure)

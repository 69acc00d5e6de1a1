"""What programs of the guest ask the host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.agent.exchange import Exchange, Lane, explain_plainly, quiet_future
from vmfork.agent.ports import PortRequests
from vmfork.errors import GuestError, ProtocolError
from vmfork.wire import message
from vmfork.wire.code import ErrorCode
from vmfork.wire.frame import MOST_ASKING, Opcode, encode_request

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from vmfork.wire.message import Asked, Failure


class Serving(Exchange):
    """SERVE: `take` is called with each question, and when a program that has asked is gone.

    `serving` is done when programs can ask. A program asks again once it was answered (`answered`): one that does
    sooner loses the line, as does a guest of which more ask than may.
    """

    lane = Lane.TUNNELS
    is_use = False

    def __init__(self, stream: int, *, take: Callable[[Asked], object]) -> None:
        super().__init__(stream)
        self.serving: asyncio.Future[None] = quiet_future()
        self._take = take
        self._unanswered: set[int] = set()

    def on_event(self, payload: bytes) -> None:
        """A program asks, or is gone."""
        asked = message.parse_asked(payload)
        if asked is None:
            if not self.serving.done():
                self.serving.set_result(None)
            return
        if asked.question is None:
            self._unanswered.discard(asked.number)
        elif asked.number in self._unanswered or len(self._unanswered) >= MOST_ASKING:
            raise ProtocolError(f"program {asked.number} asks, though it or others wait for an answer")
        else:
            self._unanswered.add(asked.number)
        self._take(asked)

    def answered(self, number: int) -> None:
        """The program is about to have its answer, and may ask again."""
        self._unanswered.discard(number)

    def on_reply(self, payload: bytes) -> None:
        """It has no end in order."""
        raise ProtocolError(f"programs cannot ask any more, with {len(payload)} bytes")

    def fail(self, error: Exception) -> None:
        """Whoever waits gets `error`."""
        if not self.serving.done():
            self.serving.set_exception(error)
        super().fail(error)


class AskRequests(PortRequests):
    """Programs of the guest ask, and are answered."""

    async def serve(self, take: Callable[[Asked], object], *, timeout_s: float | None = 30.0) -> Serving:
        """Programs can ask, until `abandon`. Those that were left waiting by a client before are told of anew.

        Raises `GuestError` when the agent is too old for it, or somebody else answers.
        """
        serving = Serving(self._new_stream(), take=take)
        request = encode_request(serving.stream, Opcode.SERVE)
        await self._stand_up(serving, request, serving.serving, "answering programs of the guest", timeout_s)
        return serving

    async def answer(self, number: int, answer: bytes, *, timeout_s: float | None = 30.0) -> bool:
        """Whether the program waited for its answer, and has it now."""
        exchange = self._new_exchange(_explain)
        request = message.answer_request(exchange.stream, number, answer)
        try:
            await self._ask(exchange, request, "answering a program of the guest", timeout_s)
        except _GoneError:
            return False
        return True


class _GoneError(GuestError):
    """The program does not wait any more."""


def _explain(failure: Failure) -> GuestError:
    gone = (ErrorCode.NOT_FOUND, ErrorCode.RESET, ErrorCode.IO)
    return _GoneError(failure.message) if failure.code in gone else explain_plainly(failure)

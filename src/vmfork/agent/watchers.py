"""The request about the guest's programs that hold random generators of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.agent.connection import Connection
from vmfork.agent.exchange import LastingExchange
from vmfork.wire import message

if TYPE_CHECKING:
    from vmfork.wire.message import ItemOutcome


class WatcherRequests(Connection):
    """Watchers: programs in the guest that asked to be told of a new generation."""

    async def notify(self, limit_s: float, *, timeout_s: float | None = 30.0) -> list[ItemOutcome]:
        """Every watcher was told of the generation in force. Gives what became of each, with the one it answered.

        A watcher that is silent for `limit_s` seconds has the outcome `timeout`, one that answered something else
        `invalid`, and one that could not reseed itself `failed`, with what it said. None of them is an error here.
        Raises `GuestError` when the agent is too old (`FIRST_WITH_NOTIFY`), is telling them already, or finds too many.
        """
        exchange = LastingExchange(self._new_stream())
        request = message.notify_request(exchange.stream, limit_s)
        answer = await self._ask(exchange, request, "telling the programs in the guest of their fork", timeout_s)
        with self.making_sense():
            return list(message.parse_outcomes(answer))

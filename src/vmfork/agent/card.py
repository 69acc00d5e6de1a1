"""The request about the guest's network card."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.agent.connection import Connection
from vmfork.agent.exchange import explain_plainly
from vmfork.errors import GuestError
from vmfork.wire import message
from vmfork.wire.code import ErrorCode

if TYPE_CHECKING:
    from vmfork.wire.message import CardReading, Failure

_TOO_OLD = "build the image and its templates again with this vmfork"


class CardRequests(Connection):
    """The card that leads out of the guest."""

    async def set_card(self, mac: str, *where: str, timeout_s: float | None = 30.0) -> CardReading:
        """The card has the Ethernet address of these 12 hex digits, and what the guest shows of it is given.

        `where`: an address, the length of its prefix and a gateway. Then the card is up; without, it is down and has
        none. Raises `GuestError` when the guest has no card, or its agent is too old to know of one.
        """
        exchange = self._new_exchange(_explain)
        request = message.net_request(exchange.stream, mac, *where)
        answer = await self._ask(exchange, request, "setting up the guest's network card", timeout_s)
        with self.making_sense():
            return message.parse_card(answer)


def _explain(failure: Failure) -> GuestError:
    if failure.code == ErrorCode.UNSUPPORTED:
        return GuestError("the agent in this machine knows no network card", hint=_TOO_OLD)
    return explain_plainly(failure)

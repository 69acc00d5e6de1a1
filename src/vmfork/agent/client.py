"""The client of one machine's agent: every request of the protocol, each with a deadline."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from vmfork.agent.asks import AskRequests
from vmfork.agent.background import BackgroundRequests
from vmfork.agent.card import CardRequests
from vmfork.agent.copies import CopyRequests
from vmfork.agent.disk import DiskRequests
from vmfork.agent.files import FileRequests
from vmfork.agent.left import LeftRequests
from vmfork.agent.watch import WatchRequests
from vmfork.agent.watchers import WatcherRequests
from vmfork.errors import GuestError
from vmfork.wire import message
from vmfork.wire.frame import NONCE_SIZE, TAKE_OVER_PREAMBLE, Opcode, encode_request

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmfork.wire.frame import BrokerOpcode
    from vmfork.wire.message import ClockReading, Hello, ItemOutcome, Kept


class AgentClient(
    BackgroundRequests,
    LeftRequests,
    FileRequests,
    CopyRequests,
    WatchRequests,
    AskRequests,
    CardRequests,
    DiskRequests,
    WatcherRequests,
):
    """The requests about the agent and the machine as a whole, beside those about programs and files.

    Every call raises `DeadlineExceeded` after its `timeout_s` seconds (`None`: no limit), `GuestError` when the guest
    refuses, and the reason in `lost` when the connection is gone.
    """

    async def hello(self, *, take_over: bool, keep: Sequence[Kept] = (), timeout_s: float | None = 30.0) -> Hello:
        """The agent answers, and nothing of an earlier client is left in it; of what `keep` names, all.

        `take_over` is for a line whose state is not known, because another client spoke on it. Only an agent with the
        capability `left` keeps anything. Raises `ProtocolError`,
        naming both numbers, when the agent speaks a protocol that this client does not.
        """
        exchange = self._new_exchange()
        self._fail_open(GuestError("the agent was greeted anew, which ends what was open"))
        nonce = os.urandom(NONCE_SIZE)
        self._line.parser.expect_nonce(nonce)
        preamble = TAKE_OVER_PREAMBLE if take_over else b""
        request = preamble + message.hello_request(exchange.stream, nonce, keep=keep)
        answer = await self._ask(exchange, request, "the greeting of the machine's agent", timeout_s)
        with self.making_sense():
            greeting = message.parse_hello(answer)
        self._protocol = greeting.protocol
        return greeting

    async def ping(self, *, timeout_s: float | None = 5.0) -> None:
        """The agent has answered."""
        await self._command(Opcode.PING, "a sign of life from the machine's agent", timeout_s)

    async def adopt(
        self, items: Sequence[tuple[str, bytes]], *, timeout_s: float | None = 30.0
    ) -> tuple[ItemOutcome, ...]:
        """What became of each item, in the order of `items`. An item that failed is an outcome, not an error."""
        exchange = self._new_exchange()
        request = message.adopt_request(exchange.stream, [*items, message.PROTOCOL_ITEM])
        answer = await self._ask(exchange, request, "adopting an identity", timeout_s)
        with self.making_sense():
            return tuple(self._take_protocol(answer))

    async def clock(
        self,
        set_to: Callable[[], int] | None = None,
        *,
        host_clock: Callable[[], int] = time.time_ns,
        timeout_s: float | None = 5.0,
    ) -> ClockReading:
        """The guest's clocks, after its wall clock was set to `set_to()`, if given: ns since 1970.

        `set_to` is called right before the bytes are written; `host_clock` is the host's in the reading.
        """
        exchange = self._new_exchange()
        sent_ns = host_clock()
        self._begin(exchange, message.clock_request(exchange.stream, None if set_to is None else set_to()))
        payload = await self._result(exchange, "the clock of the guest", timeout_s)
        received_ns = host_clock()
        with self.making_sense():
            wall_ns, monotonic_ns = message.parse_clock(payload)
        return message.ClockReading(wall_ns, monotonic_ns, sent_ns, received_ns)

    async def quiesce(self, *, timeout_s: float | None = 60.0) -> tuple[ItemOutcome, ...]:
        """Nothing is in flight, and the guest may be frozen.

        Raises `GuestError` when a program started over this connection still runs.
        """
        payload = await self._command(Opcode.QUIESCE, "preparing the guest for a freeze", timeout_s)
        with self.making_sense():
            return message.parse_outcomes(payload)

    async def grown(self, *, timeout_s: float | None = 30.0) -> tuple[ItemOutcome, ...]:
        """The guest's file systems in memory have grown with its memory; each with its size in bytes.

        Raises `GuestError` when they are not the agent's, or it is older than `FIRST_WITH_ROOM`.
        """
        payload = await self._command(Opcode.GROWN, "growing the guest's file systems", timeout_s)
        with self.making_sense():
            return message.parse_outcomes(payload)

    async def shutdown(self, *, timeout_s: float | None = 30.0) -> None:
        """The guest is about to power off."""
        await self._command(Opcode.SHUTDOWN, "shutting the guest down", timeout_s)

    async def ask_broker(self, opcode: BrokerOpcode, *fields: bytes, operation: str, timeout_s: float = 30.0) -> bytes:
        """The answer of the broker that this client is connected to. An agent knows none of these requests."""
        exchange = self._new_exchange()
        return await self._ask(exchange, encode_request(exchange.stream, opcode, *fields), operation, timeout_s)

    async def _command(self, opcode: Opcode, operation: str, limit_s: float | None) -> bytes:
        exchange = self._new_exchange()
        return await self._ask(exchange, encode_request(exchange.stream, opcode), operation, limit_s)

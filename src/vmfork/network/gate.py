"""The one place that connections out of a machine pass: each is judged, made, counted and told."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

from vmfork.agent.change import Change
from vmfork.network.decision import Decision, NetworkCounts
from vmfork.network.dialing import Resolver, Unreachable, dial, look_up
from vmfork.network.pace import Pace
from vmfork.network.pattern import find_address
from vmfork.network.policy import find_entries, judge_address, judge_host

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable, Sequence

    from vmfork.network.dialing import LookUp
    from vmfork.network.floor import Address
    from vmfork.network.policy import NetworkPolicy

_MOST_KEPT = 1000
# As many at once as an installation takes, then so many a second: a guest that asks for more waits.
_BURST, _RATE = 200, 50.0


class Denied(Exception):
    """The policy is against it: `str()` names the rule."""


class _Passage(NamedTuple):
    host: str
    port: int
    address: Address
    task: asyncio.Task[object]


class Gate:
    """Holds a machine's policy. What it decided last is in `log`, 1,000 decisions at most.

    On a new policy, connections that it would not allow are ended. Whoever asks for a name that `is_near`, one that the
    guest finds by itself, and may not reach it by the policy, is told to leave the proxy out.
    """

    def __init__(
        self,
        policy: NetworkPolicy,
        *,
        look_up: LookUp = look_up,
        pace: Pace | None = None,
        is_near: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self.policy: NetworkPolicy = policy
        self.log: deque[Decision] = deque(maxlen=_MOST_KEPT)
        self._resolver = Resolver(look_up)
        self._passages: set[_Passage] = set()
        self._allowed = self._denied = 0
        self.sent_bytes = self.received_bytes = 0
        self._pace = pace or Pace(_BURST, _RATE)
        self._is_near = is_near
        self._change = Change()
        self._is_closed = False

    @property
    def counts(self) -> NetworkCounts:
        """How many there were, and are."""
        return NetworkCounts(
            allowed=self._allowed,
            denied=self._denied,
            open=len(self._passages),
            sent_bytes=self.sent_bytes,
            received_bytes=self.received_bytes,
        )

    def change(self, policy: NetworkPolicy) -> None:
        """The policy holds from now on, for connections that are open as well."""
        self.policy = policy
        for passage in self._passages:
            if not self._still_allows(passage):
                passage.task.cancel()

    def close(self) -> None:
        """Nothing passes any more."""
        self.change("none")
        self._resolver.close()
        self._is_closed = True
        self._change.tell()

    async def follow(self) -> AsyncIterator[Decision]:
        """Each decision from now on, until nothing passes any more; who is slow misses those that the log has lost."""
        place = self._decided
        while True:
            place = max(place, self._decided - len(self.log))
            if place < self._decided:
                decision = self.log[place - self._decided]
                place += 1
                yield decision
            elif self._is_closed:
                return
            else:
                await self._change.next()

    @property
    def _decided(self) -> int:
        return self._allowed + self._denied

    @asynccontextmanager
    async def passage(self, host: str, port: int) -> AsyncIterator[socket.socket]:
        """A connection to the host, a name or an address, in the task that uses it. Raises `Denied`, `Unreachable`.

        The name is looked up once, each of its addresses judged, and it is one of these that is connected to: what the
        name leads to later matters to nobody.
        """
        if (early_s := self._pace.take_turn(time.monotonic())) > 0:
            await asyncio.sleep(early_s)
        self._judge(host, port)
        addresses, why = await self._find_allowed(host, port)
        service, address = await self._dial(host, addresses, port, why)
        task = asyncio.current_task()
        assert task is not None
        passage = _Passage(host, port, address, task)
        self._passages.add(passage)
        try:
            with service:
                if not self._still_allows(passage):  # the policy changed meanwhile
                    raise Denied(judge_host(self.policy, host, port).why)
                yield service
        finally:
            self._passages.discard(passage)

    def allows_server(self, name: str, host: str, port: int) -> bool:
        """Whether a TLS client that was connected to the host may ask for the server `name` there.

        It may ask for the host. At an address, which has no name, it may ask for whatever the list has.
        """
        return name == host or (find_address(host) is not None and judge_host(self.policy, name, port).allowed)

    def deny(self, host: str, port: int, why: str, *, address: str = "") -> Denied:
        """The error that denies it, which is in the log."""
        self._tell(host, port, address, allowed=False, why=why)
        return Denied(why)

    def _judge(self, host: str, port: int) -> None:
        verdict = judge_host(self.policy, host, port)
        if verdict.allowed:
            return
        if self._is_near(host) and not find_entries(self.policy, host):
            raise self.deny(host, port, f"{host} is reached without a proxy: add it to NO_PROXY")
        raise self.deny(host, port, verdict.why)

    async def _find_allowed(self, host: str, port: int) -> tuple[Sequence[Address], str]:
        why = judge_host(self.policy, host, port).why
        if (literal := find_address(host)) is not None:
            return [literal], why
        try:
            found = await self._resolver.find(host, port)
        except Unreachable as error:
            self._tell(host, port, "", allowed=True, why=f"{why}, but {error}")
            raise
        verdicts = [(address, judge_address(self.policy, address, port)) for address in found]
        if allowed := [address for address, verdict in verdicts if verdict.allowed]:
            return allowed, why
        address, verdict = verdicts[0]
        raise self.deny(host, port, f"{host} leads to {verdict.why}", address=str(address))

    async def _dial(
        self, host: str, addresses: Sequence[Address], port: int, why: str
    ) -> tuple[socket.socket, Address]:
        try:
            service, address = await dial(addresses, port)
        except Unreachable as error:
            self._tell(host, port, str(addresses[0]), allowed=True, why=f"{why}, but {error}")
            raise
        self._tell(host, port, str(address), allowed=True, why=why)
        return service, address

    def _still_allows(self, passage: _Passage) -> bool:
        host, port, address, _ = passage
        return judge_host(self.policy, host, port).allowed and judge_address(self.policy, address, port).allowed

    def _tell(self, host: str, port: int, address: str, *, allowed: bool, why: str) -> None:
        self._allowed += allowed
        self._denied += not allowed
        decision = Decision(time_s=time.time(), host=host, port=port, address=address, allowed=allowed, why=why)
        self.log.append(decision)
        self._change.tell()

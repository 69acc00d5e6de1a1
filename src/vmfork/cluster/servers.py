"""Nodes that are a static list of servers: each program asks them itself, and finds for itself who has what.

```
each program    its own directory, which asks all servers each second
each server     one node; which node has the machine of a key is said by one of them, the key's home (`claims.py`)
```
A node is named by its address as the list has it. One that does not answer for `LOST_AFTER_S` seconds counts as lost,
until it answers again.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vmfork.cluster.carried import read_answer, write_request
from vmfork.cluster.claims import order_homes
from vmfork.cluster.directory import Directory
from vmfork.cluster.joined import join_site, leave_site
from vmfork.cluster.terms import Decision, Machine, Report, find_version
from vmfork.config.servers import check_servers
from vmfork.errors import Closed, ConfigError, HostError, NodeLost, NodeRefused, NoNode, VMForkError
from vmfork.machine.trace import carry
from vmfork.owner import Owner
from vmfork.rpc.node import NodeClient

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from vmfork.cluster.terms import Ask
    from vmfork.config.servers import Access

LOST_AFTER_S = 5.0
_HELLO_LIMIT_S = 10.0


class ServerPeers(Owner):
    """Owner of the lines to servers, made when they are first used. `servers` are those that count as nodes."""

    def __init__(self, servers: Sequence[str], access: Access) -> None:
        self.servers = tuple(servers)
        self._access = access
        self._clients: dict[str, NodeClient] = {}
        self._is_closed = False

    async def list_nodes(self) -> Sequence[str]:
        """The addresses of the list."""
        return self.servers

    async def call(self, node: str, verb: str, *args: Any) -> Any:
        """What the node's call of that name gives."""
        answer = await self._find(node).call(write_request(verb, args), carry())
        self._has_answered(node)
        return _place_at(node, read_answer(answer, of=node))

    async def stream(self, node: str, verb: str, *args: Any) -> AsyncGenerator[Any, None]:
        """What the node's call of that name gives, piece by piece."""
        answers = self._find(node).stream(write_request(verb, args), carry())
        try:
            async for answer in answers:
                yield read_answer(answer, of=node)
        finally:
            await answers.aclose()

    async def aclose(self) -> None:
        """The lines are gone; calls under way fail, and those that come raise `Closed`."""
        self._is_closed = True
        clients, self._clients = self._clients, {}
        await asyncio.gather(*(client.aclose() for client in clients.values()))

    def _has_answered(self, node: str) -> None:
        """Whatever it said."""

    def _find(self, node: str) -> NodeClient:
        if self._is_closed:
            raise Closed("the list of servers", hint="open it again: vmfork.Cluster.at()")
        if node not in self._clients:
            self._clients[node] = NodeClient(node, self._access)
        return self._clients[node]


class ServersSite(ServerPeers):
    """The list as a program sees it."""

    def __init__(self, servers: Sequence[str], access: Access) -> None:
        super().__init__(servers, access)
        self.client = uuid.uuid4().hex
        self.missing: dict[str, str] = {}
        self._directory = Directory(self, version=find_version())
        self._down: dict[str, float] = dict.fromkeys(servers, 0.0)  # since when; at first nobody has answered
        self._trying: dict[str, asyncio.Task[VMForkError | None]] = {}
        self._claimed: dict[str, str] = {}
        self._watch: asyncio.Task[None] | None = None
        join_site(self)

    def __repr__(self) -> str:
        return f"{len(self.servers)} servers"

    async def open(self) -> None:
        """At least one server answers. Raises `NodeRefused` where one lets us not in, `HostError` where none does."""
        for error in await asyncio.gather(*(self._try(node) for node in self.servers)):
            if isinstance(error, (NodeRefused, ConfigError)):
                raise error
        if self._down.keys() >= {*self.servers}:
            told = "; ".join(f"{node}: {why}" for node, why in self.missing.items())
            raise HostError(f"no server of the list answers: {told}", hint="start them: vmfork cluster serve")
        self._watch = asyncio.ensure_future(self._directory.keep_looking())

    async def list_nodes(self) -> Sequence[str]:
        """The servers that answered last time, or did not for a few seconds only. Others are tried meanwhile."""
        late = time.monotonic() - LOST_AFTER_S
        for node, since in self._down.items():
            if since <= late and node not in self._trying:
                # Not waited for: a host that is gone says nothing for seconds.
                self._trying[node] = asyncio.ensure_future(self._try(node))
        return [node for node in self.servers if self._down.get(node, late + 1) > late]

    async def call(self, node: str, verb: str, *args: Any) -> Any:
        try:
            return await super().call(node, verb, *args)
        except (NodeLost, NodeRefused) as error:
            if error.node == node:  # and not one that it had asked for a template
                self._down.setdefault(node, time.monotonic())
                self.missing[node] = error.reason
            raise

    def _has_answered(self, node: str) -> None:
        self._down.pop(node, None)
        self.missing.pop(node, None)

    async def ask(self, verb: str, *args: Any) -> Any:
        """What the directory's call of that name gives. One key leads all programs to one node."""
        try:
            match verb:
                case "place":
                    return await self._place(*args)
                case "settle":
                    return await self._settle(*args)
                case "release":
                    await self._release(*args)
                case "note_end":
                    await self._release_machine(*args)
            return await getattr(self._directory, verb)(*args)
        except NoNode as error:  # the directory knows none that was never heard of
            node = next((each for each in self.missing if repr(each) in str(error)), None)
            if node is None:
                raise
            told = f"node {node!r} does not answer: {self.missing[node]}"
            raise NoNode(told, reasons=error.reasons, hint="start it, or name another") from error

    async def aclose(self) -> None:
        """We have left the list; what was under way fails."""
        leave_site(self)
        tasks = [*self._trying.values(), *([] if self._watch is None else [self._watch])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._directory.aclose()
        await super().aclose()

    async def _try(self, node: str) -> VMForkError | None:
        """Whether the node answers is known; gives what went wrong."""
        try:
            await asyncio.wait_for(self.call(node, "hello"), _HELLO_LIMIT_S)
        except TimeoutError:
            self.missing[node] = f"no answer within {_HELLO_LIMIT_S:g} s"
        except VMForkError as error:
            self.missing[node] = getattr(error, "reason", str(error))
            return error
        finally:
            self._trying.pop(node, None)
        return None

    async def _place(self, ask: Ask) -> Decision:
        if not ask.is_shared:
            found: Decision = await self._directory.place(ask)
            return found
        await self._directory.look()  # another program may have it
        decision = await self._directory.place(ask)
        said = await self._claim(ask.key, decision.node)
        if said != decision.node:
            await self._directory.release(ask.key)
            decision = await self._place_on(ask, said)
            if decision.node != said:
                await self._claim(ask.key, decision.node, instead_of=said)
        self._claimed[ask.key] = decision.node
        return decision

    async def _place_on(self, ask: Ask, node: str) -> Decision:
        """There, or, where that cannot be or the machine is elsewhere, as if nobody had said so."""
        if node not in ask.avoid and ask.constraints.node in ("", node):
            with suppress(NoNode):
                return await self._directory.place(replace(ask, constraints=replace(ask.constraints, node=node)))
        return await self._directory.place(ask)

    async def _settle(self, machine: Machine) -> Machine:
        node = await self._claim(machine.key, machine.node)
        if node != machine.node:
            with suppress(NodeLost):
                other: Machine | None = await self.call(node, "find_key", machine.key)
                if other is not None:
                    return other
            await self._claim(machine.key, machine.node, instead_of=node)
        settled: Machine = await self._directory.settle(machine)
        return settled

    async def _release(self, key: str) -> None:
        if (node := self._claimed.pop(key, None)) is not None:
            await self._ask_home(key, "unclaim", key, node)

    async def _release_machine(self, machine: Machine) -> None:
        """Its key leads to no node any more."""
        if self._claimed.get(machine.key) == machine.node:
            await self._release(machine.key)

    async def _claim(self, key: str, node: str, *, instead_of: str = "") -> str:
        """The node that the key's home says. Where no server answers, ours."""
        said: str | None = await self._ask_home(key, "claim", key, node, instead_of)
        return said or node

    async def _ask_home(self, key: str, verb: str, *args: Any) -> Any:
        for home in order_homes(key, self.servers):
            if home not in self._down:
                with suppress(NodeLost):
                    return await self.call(home, verb, *args)
        return None


def _place_at(node: str, found: Any) -> Any:
    """What a node says of itself, by the name that we know it by."""
    match found:
        case Machine():
            return replace(found, node=node)
        case [Machine(), *_]:
            return [_place_at(node, each) for each in found]
        case Report():
            machines = tuple(_place_at(node, each) for each in found.machines)
            return replace(found, offer=replace(found.offer, name=node), machines=machines)
    return found


async def open_site(servers: Sequence[str], access: Access) -> ServersSite:
    """The list, of which at least one server answers. Raises as `ServersSite.open`."""
    site = ServersSite(check_servers(servers), access)
    try:
        await site.open()
    except BaseException:
        await site.aclose()
        raise
    return site

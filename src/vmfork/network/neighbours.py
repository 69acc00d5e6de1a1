"""Machines of one process that reach services of each other by name."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from vmfork.errors import ConfigError
from vmfork.network.hostname import check_name, is_localhost
from vmfork.network.passage import start_passage

if TYPE_CHECKING:
    from vmfork.agent.client import AgentClient
    from vmfork.agent.tunnel import GuestConnection
    from vmfork.network.names import Names


class _Service:
    """A port of one machine, and the name by which the others reach it. Behind its end another may offer the same."""

    def __init__(self, name: str, port: int, agent: AgentClient) -> None:
        self.name = name
        self.port = port
        self.agent = agent

    async def dial(self) -> GuestConnection:
        return await self.agent.begin_tunnel(self.port)


class _Member:
    """A machine that reaches services of others, each at an address of its own loopback. What it has ends with it."""

    def __init__(self, agent: AgentClient, names: Names) -> None:
        self.agent = agent
        self._names = names
        self._passages: dict[_Service, AsyncExitStack] = {}

    async def open(self, service: _Service) -> None:
        """The service is reached. After a failure all is as before."""
        async with AsyncExitStack() as on_failure:
            name = await on_failure.enter_async_context(await self._names.open(service.name))
            passage = await start_passage(self.agent, name.address, service.port, dial=service.dial)
            await on_failure.enter_async_context(passage)
            self._passages[service] = on_failure.pop_all()

    async def close(self, service: _Service) -> None:
        """The service is reached no more."""
        await self._passages.pop(service).aclose()

    async def aclose(self) -> None:
        """No service is."""
        for service in tuple(self._passages):
            await self.close(service)


class Neighbours:
    """The machines that have joined a network, and what each offers the others."""

    def __init__(self, network: str) -> None:
        self.services: dict[tuple[str, int], _Service] = {}
        self._network = network
        self._members: list[_Member] = []
        self._turn = asyncio.Lock()

    async def join(self, agent: AgentClient, names: Names) -> None:
        """The machine reaches what others offer, now and later. Again it does nothing.

        Raises `PortError` when somebody listens in the guest where a service is to be reached; it has not joined then.
        """
        async with self._turn:
            self._members = [member for member in self._members if member.agent.lost is None]
            if any(member.agent is agent for member in self._members):
                return
            member = _Member(agent, names)
            async with AsyncExitStack() as on_failure:
                on_failure.push_async_callback(member.aclose)
                for service in self.services.values():
                    await member.open(service)
                on_failure.pop_all()
            self._members.append(member)

    async def expose(self, agent: AgentClient, port: int, name: str) -> None:
        """The others reach the machine's port as `name:port`, until the machine has ended. Again it does nothing.

        Raises `ConfigError` when another machine has the name, and `PortError` when somebody listens in another guest
        where it would be reached; nobody reaches it then.
        """
        name = check_name(name, field="name")
        if is_localhost(name):
            raise ConfigError("name", name, f"{name!r} is each guest itself", hint="take another name")
        async with self._turn:
            self._check_free(name, agent)
            if (service := self.services.get((name, port))) is not None:
                service.agent = agent
            else:
                self.services[name, port] = await self._offer(_Service(name, port, agent))

    def _check_free(self, name: str, agent: AgentClient) -> None:
        for service in self.services.values():
            if service.name == name and service.agent is not agent and service.agent.lost is None:
                reason = f"{name!r} is the name of another machine of the network {self._network!r}"
                raise ConfigError("name", name, reason, hint="take another name, or end that machine")

    async def _offer(self, service: _Service) -> _Service:
        """Every other machine reaches it. After a failure none does."""
        async with AsyncExitStack() as on_failure:
            for member in self._members:
                if member.agent is not service.agent and member.agent.lost is None:
                    await member.open(service)
                    on_failure.push_async_callback(member.close, service)
            on_failure.pop_all()
        return service


class Network:
    """Machines of this process that reach each other's services by name, and nothing else of each other.

    A machine takes part once it has joined (`vm.join(network)`). It offers a port of its loopback by
    `vm.expose(5432, "db")`, which the others reach as `db:5432`, in whatever order they joined. A name is one
    machine's, until that has ended. There is nothing to close: what a machine reaches ends with the machine.
    """

    def __init__(self, name: str = "network") -> None:
        self.name = check_name(name, field="name")
        self._neighbours = Neighbours(self.name)

    def __repr__(self) -> str:
        return f"<Network {self.name}: {', '.join(self.services) or 'nothing is offered'}>"

    @property
    def services(self) -> list[str]:
        """What is offered, as `db:5432`."""
        return sorted(f"{name}:{port}" for name, port in self._neighbours.services)


def neighbours_of(network: Network) -> Neighbours:
    """What the network is made of, for the machines that take part."""
    return network._neighbours  # noqa: SLF001 - hidden from callers of the library alone

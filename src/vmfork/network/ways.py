"""A machine's ways out: the proxy in its guest, and a port for each host of the list that has one port."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from vmfork.network.decision import NetworkCounts
from vmfork.network.gate import Gate
from vmfork.network.policy import Allow, check_policy
from vmfork.network.proxy import Passage, Proxy
from vmfork.network.variables import PROXY_PORT
from vmfork.owner import Owner

if TYPE_CHECKING:
    from vmfork.agent.client import AgentClient
    from vmfork.network.names import Names
    from vmfork.network.policy import NetworkPolicy

__all__ = ["Allow", "Gate", "NetworkCounts", "Ways", "check_policy"]

_LIMIT_S = 30.0


class Ways(Owner):
    """Holds what listens in the guest for a policy, until it is closed or the machine's line has ended.

    Each host that the list names with its port is found in the guest by its name, at an address of the loopback, so
    that programs reach it that know no proxy.
    """

    def __init__(self, agent: AgentClient, gate: Gate, names: Names, *, is_in_env: bool) -> None:
        self.gate = gate
        self.is_in_env = is_in_env
        """Every program of the machine has the variables of the proxy, since it was forked with them."""
        self._agent = agent
        self._names = names
        self._proxy: AsyncExitStack | None = None
        self._passages: dict[tuple[str, int], AsyncExitStack] = {}
        agent.closed.add_done_callback(self._close_gate)

    async def open(self, *, timeout_s: float = _LIMIT_S) -> None:
        """What the gate's policy needs listens in the guest, and nothing else does. After an error nothing listens.

        Raises `PortError` when somebody else listens there, and `GuestFileError` when the guest's hosts file cannot be
        written.
        """
        async with AsyncExitStack() as on_failure:
            on_failure.push_async_callback(self.aclose)
            wanted = _own_ports(self.gate.policy)
            for gone in [each for each in self._passages if each not in wanted]:
                await self._passages.pop(gone).aclose()
            if self._proxy is None:
                self._proxy = await self._open_proxy(timeout_s)
            for host, port in wanted - self._passages.keys():
                self._passages[host, port] = await self._open_passage(host, port, timeout_s)
            on_failure.pop_all()

    async def _open_proxy(self, timeout_s: float) -> AsyncExitStack:
        listening = await self._agent.listen(PROXY_PORT, timeout_s=timeout_s)
        stack = AsyncExitStack()
        stack.push_async_callback(Proxy(self._agent, PROXY_PORT, listening=listening, gate=self.gate).aclose)
        return stack

    async def _open_passage(self, host: str, port: int, timeout_s: float) -> AsyncExitStack:
        async with AsyncExitStack() as stack:
            name = await stack.enter_async_context(await self._names.open(host))
            listening = await self._agent.listen(port, address=name.address, timeout_s=timeout_s)
            passage = Passage(self._agent, port, listening=listening, gate=self.gate, host=host)
            stack.push_async_callback(passage.aclose)
            return stack.pop_all()

    async def aclose(self) -> None:
        """Nothing listens in the guest any more, and all that led out of it has ended."""
        self.gate.change("none")
        ended, self._passages = self._passages, {}
        proxy, self._proxy = self._proxy, None
        for stack in (*ended.values(), *([proxy] if proxy else [])):
            await stack.aclose()

    def _close_gate(self, _closed: object) -> None:
        self.gate.close()


def _own_ports(policy: NetworkPolicy) -> set[tuple[str, int]]:
    patterns = policy.patterns if isinstance(policy, Allow) else ()
    return {(pattern.name, pattern.own_port) for pattern in patterns if pattern.own_port is not None}

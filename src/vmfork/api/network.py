"""What a machine may reach."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.border import guarded
from vmfork.machine.ways import count_connections, find_gate, load_ways, set_network

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from vmfork.machine.running import Running
    from vmfork.network.decision import Decision, NetworkCounts
    from vmfork.network.policy import NetworkPolicy


@guarded
class GuestNetwork:
    """What a machine may reach beyond itself, and what it asked for. Nothing, unless we hold another policy for it."""

    _running: Running

    @property
    def network(self) -> NetworkPolicy:
        """The policy that we hold for it: `none`, `all`, or an `Allow`."""
        gate = find_gate(self._running)
        return "none" if gate is None else gate.policy

    @property
    def network_log(self) -> Sequence[Decision]:
        """What was decided about the last 1,000 connections that its programs asked for, oldest first."""
        gate = find_gate(self._running)
        return () if gate is None else tuple(gate.log)

    @property
    def network_counts(self) -> NetworkCounts:
        """How many connections were allowed and denied, are open, and what went through them."""
        return count_connections(self._running)

    async def follow_network(self) -> AsyncIterator[Decision]:
        """What is decided about connections that its programs ask for, as it is, until the machine ends.

        Only where we hold a policy for it: else there is nothing to follow.
        """
        if (gate := find_gate(self._running)) is not None:
            async for decision in gate.follow():
                yield decision

    async def set_network(self, network: NetworkPolicy) -> None:
        """The policy holds from now on. Connections that are open and against it are reset.

        Programs that are started from now on find the proxy by their environment, unless a variable of theirs says
        otherwise. After an error the policy is `none`. Raises `ConfigError` for what is no policy, `PortError` when a
        program of the guest listens where the proxy is to (127.0.0.1:3128), `StoreBusy` when another client of the
        machine holds its policy, and `GuestFileError` when the guest's hosts file cannot be written.
        """
        policy = load_ways().check_policy(network)
        await set_network(self._running, policy)

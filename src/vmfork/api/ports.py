"""The ports of a guest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.border import guarded
from vmfork.errors import ConfigError
from vmfork.machine.ports import forward
from vmfork.network.address import parse_address
from vmfork.network.listening import wait_listening
from vmfork.network.neighbours import Network, neighbours_of
from vmfork.network.reverse import start_reverse
from vmfork.owner import gives_owner

if TYPE_CHECKING:
    from vmfork.agent.tunnel import GuestConnection
    from vmfork.machine.running import Running
    from vmfork.network.forward import Forward
    from vmfork.network.reverse import Reverse

_LIMIT_S = 30.0
_FREE_PORT = "127.0.0.1:0"


@guarded
class GuestPorts:
    """What a machine does with the TCP ports of its guest: those of its loopback, 127.0.0.1 or else ::1."""

    _running: Running

    @gives_owner
    async def open_connection(self, port: int, *, timeout_s: float = _LIMIT_S) -> GuestConnection:
        """A connection to who listens at `port` in the guest; no port of the host leads there.

        Raises `PortError` when nobody listens, and `GuestError` when the machine's agent is too old for it.
        """
        return await self._running.agent.open_tunnel(port, timeout_s=timeout_s)

    @gives_owner
    async def forward(self, guest_port: int, host: str = _FREE_PORT, *, timeout_s: float = _LIMIT_S) -> Forward:
        """A port of the host that leads to `guest_port`. Nobody need listen there yet.

        `host` is `PORT`, `ADDRESS:PORT` (port 0 is a free one: `host_port` says which), or the path of a Unix socket,
        which only this user can connect to. Who connects while nobody listens in the guest is reset. A port of the
        loopback is open to every user of the host; another address to whoever reaches it.

        Raises `ConfigError` for an address that is none, `HostError` when it is taken, or no address of this host, and
        `GuestError` when the machine's agent is too old for it.
        """
        return await forward(self._running, guest_port, parse_address(host), timeout_s=timeout_s)

    @gives_owner
    async def reverse(self, host: str, guest_port: int, *, timeout_s: float = _LIMIT_S) -> Reverse:
        """`guest_port` of the guest's 127.0.0.1 leads to a service of the host, at `ADDRESS:PORT` or a Unix socket.

        Every program of the guest can connect there, and to nothing else of the host. It is connected by this process;
        where the service refuses, the program is reset. The service need not run yet.

        Raises `ConfigError` for an address that is none, `PortError` when somebody listens at the port of the guest,
        and `GuestError` when the machine's agent is too old for it.
        """
        address = parse_address(host)
        if address.path is None and not address.port:
            raise ConfigError("host", host, "0 is not a port of a service", hint="name it: 127.0.0.1:5432")
        return await start_reverse(self._running.agent, guest_port, address, timeout_s=timeout_s)

    async def join(self, network: Network) -> None:
        """Programs of the machine reach what others of the network offer, now and later. Again it does nothing.

        The name of a service leads to an address of the guest's own loopback (`/etc/hosts`); from there this process
        carries each connection to the machine that offers it. Raises `PortError` when somebody listens there in the
        guest.
        """
        await neighbours_of(_check_network(network)).join(self._running.agent, self._running.names)
        if network not in self._running.networks:
            self._running.networks.append(network)

    async def expose(self, port: int, name: str) -> None:
        """Others of each network that the machine has joined reach its `port` as `name:port`. Again it does nothing.

        Nobody need listen there yet; who connects while nobody does is reset. It ends with the machine. Raises
        `ConfigError` when the machine has joined no network, or another of it has the name.
        """
        if not self._running.networks:
            hint = 'join one first: network = vmfork.Network("job"); vm.join(network)'
            raise ConfigError("name", name, "the machine has joined no network", hint=hint)
        for network in self._running.networks:
            await neighbours_of(network).expose(self._running.agent, port, name)

    async def wait_for_port(self, port: int, *, timeout_s: float = _LIMIT_S) -> None:
        """Somebody listens at `port` in the guest. Nobody was connected to, so that no service sees a caller.

        Raises `DeadlineExceeded` when nobody does within `timeout_s` seconds.
        """
        await wait_listening(self._running.agent, port, timeout_s=timeout_s)


def _check_network(network: object) -> Network:
    if not isinstance(network, Network):
        raise ConfigError("network", network, f"{network!r} is no network", hint='give one: vmfork.Network("job")')
    return network

"""From a name to a connected socket, by way of addresses that each were judged."""

from __future__ import annotations

import asyncio
import errno
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

from vmfork.host.inherited import close_in_children
from vmfork.network.pattern import find_address
from vmfork.network.splice import without_delay

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmfork.network.floor import Address

    LookUp = Callable[[str, int], Sequence[str]]

_LOOK_UP_LIMIT_S = 15.0
_CONNECT_LIMIT_S = 15.0
# Of one name: more are only tried where the first do not answer.
_MOST_ADDRESSES = 8
_WORDS = {errno.ECONNREFUSED: "refused the connection", errno.ETIMEDOUT: "did not answer"}


class Unreachable(Exception):
    """An allowed host could not be reached: `str()` says why. `refused`: it was, and has nobody at that port."""

    def __init__(self, why: str, *, refused: bool = False) -> None:
        super().__init__(why)
        self.refused = refused


def look_up(name: str, port: int) -> Sequence[str]:
    """The addresses of the name, as the host's resolver has them. Raises `OSError`."""
    return [str(found[4][0]) for found in socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)]


class Resolver:
    """Looks names up in threads of its own: a resolver that does not answer holds up nobody else's threads."""

    def __init__(self, how: LookUp = look_up) -> None:
        self._how = how
        self._threads: ThreadPoolExecutor | None = None

    async def find(self, name: str, port: int) -> Sequence[Address]:
        """The addresses of the name, at least one. Raises `Unreachable`."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(4, thread_name_prefix="vmfork-names")
        try:
            async with asyncio.timeout(_LOOK_UP_LIMIT_S):
                found = await asyncio.get_running_loop().run_in_executor(self._threads, self._how, name, port)
        except TimeoutError:
            raise Unreachable(f"{name} was looked up for {_LOOK_UP_LIMIT_S:g} s without an answer") from None
        except (OSError, UnicodeError):
            raise Unreachable(f"{name} leads to no address") from None
        addresses = [address for text in found if (address := find_address(text)) is not None]
        if not addresses:
            raise Unreachable(f"{name} leads to no address")
        return [*dict.fromkeys(addresses)][:_MOST_ADDRESSES]

    def close(self) -> None:
        """Nobody looks anything up any more; what is under way ends by itself."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)


async def dial(addresses: Sequence[Address], port: int) -> tuple[socket.socket, Address]:
    """A connection to the first of the addresses that answers, and that address. Raises `Unreachable`."""
    why, refused = "", True
    for address in addresses:
        try:
            return await _connect(address, port), address
        except OSError as error:  # TimeoutError is one
            reason = "did not answer" if isinstance(error, TimeoutError) else _WORDS.get(error.errno or 0)
            why = f"{address} port {port} {reason or f'cannot be reached: {error.strerror}'}"
            refused = refused and error.errno == errno.ECONNREFUSED
    raise Unreachable(why, refused=refused)


async def _connect(address: Address, port: int) -> socket.socket:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with ExitStack() as on_failure:
        service = on_failure.enter_context(socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
        async with asyncio.timeout(_CONNECT_LIMIT_S):
            await asyncio.get_running_loop().sock_connect(service, (str(address), port))
        without_delay(service)
        on_failure.pop_all()
    return close_in_children(service)

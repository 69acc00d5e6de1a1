"""Names that a guest finds on its own loopback, for services that are elsewhere.

```
127.0.1.2	db	# vmfork
```
Such a line of the guest's hosts file leads a program that knows no proxy to an address at which the agent listens for
us. 127.0.1.1 is the guest's own name. A line is above all others, so that it is the first to be found.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING

from vmfork.errors import ConfigError, GuestError, GuestFileError, StoreBusy
from vmfork.host.lock import locked_folder
from vmfork.network.hostname import check_name, is_localhost
from vmfork.owner import Owner
from vmfork.wire.code import ErrorCode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from vmfork.agent.client import AgentClient

HOSTS = "/etc/hosts"
_LOCALHOST = "127.0.0.1\tlocalhost\n::1\t\tlocalhost ip6-localhost ip6-loopback\n"
_MARK = "\t# vmfork\n"
_TAKEN = re.compile(r"^[ \t]*127\.0\.1\.(\d+)[ \t]", re.MULTILINE)
_MOST_READ = 1024 * 1024
_LIMIT_S = 30.0


class Names:
    """The names that we gave in one guest.

    Of several clients of a machine, each has its own. They change the one file by turns, which the machine's `folder`
    on the host gives them: what one read and writes back would else lack the line that another wrote meanwhile.
    """

    def __init__(self, agent: AgentClient, *, hosts: str = HOSTS, folder: Path | None = None) -> None:
        self._agent = agent
        self._hosts = hosts
        self._folder = folder
        self._lock = asyncio.Lock()
        self._given: dict[str, tuple[str, int]] = {}

    async def open(self, name: str) -> GuestName:
        """The name leads to an address of the guest's loopback, the same for all who open it, until the last closes it.

        Raises `ConfigError` for what is no name, or when all addresses are taken, and `GuestFileError` when the guest's
        hosts file cannot be written, and `StoreBusy` when another client has been changing it for half a minute.
        """
        name = check_name(name, field="name")
        if is_localhost(name):
            raise ConfigError("name", name, f"{name!r} is the guest itself", hint="take another name")
        async with self._lock:
            address, users = self._given.get(name, ("", 0))
            if not users:
                async with self._turn():
                    hosts, address = add_line(await self._read(), name)
                    await self._write(hosts)
            self._given[name] = address, users + 1
        return GuestName(self, name, address)

    def has(self, name: str) -> bool:
        """Whether the guest finds the name by us."""
        return name in self._given

    async def close(self, name: str) -> None:
        """One user of the name less; behind the last, nothing leads there any more."""
        async with self._lock:
            address, users = self._given.pop(name)
            if users > 1:
                self._given[name] = address, users - 1
            elif self._agent.lost is None:
                with suppress(GuestError, StoreBusy):  # the guest may have no room for a file
                    async with self._turn():
                        await self._write(drop_line(await self._read(), name, address))

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as turn:
            if self._folder is not None:
                with suppress(FileNotFoundError):  # the machine has ended, as its agent's line is about to say
                    await turn.enter_async_context(locked_folder(self._folder, wait_s=_LIMIT_S))
            yield

    async def drop_inherited(self) -> None:
        """No name leads anywhere that leads nowhere: those given in the machine that this one is a copy of."""
        async with self._lock, self._turn():
            hosts = await self._read()
            if (kept := drop_lines(hosts)) != hosts:
                await self._write(kept)

    async def _read(self) -> str:
        try:
            content = await self._agent.read_file(self._hosts, length=_MOST_READ, timeout_s=_LIMIT_S)
        except GuestFileError as error:
            if error.reason != ErrorCode.NOT_FOUND:
                raise
            return _LOCALHOST
        return content.decode("utf-8", "surrogateescape")

    async def _write(self, hosts: str) -> None:
        content = hosts.encode("utf-8", "surrogateescape")
        await self._agent.write_file(self._hosts, content, parents=True, timeout_s=_LIMIT_S)


class GuestName(Owner):
    """A name that the guest finds at `address`, 127.0.1.N, until this is closed."""

    def __init__(self, names: Names, name: str, address: str) -> None:
        self.name = name
        self.address = address
        self._names = names
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<GuestName {self.name} at {self.address}>"

    async def aclose(self) -> None:
        """The guest finds the name no more, unless somebody else of us has it open."""
        if not self._is_closed:
            self._is_closed = True
            await self._names.close(self.name)


def add_line(hosts: str, name: str) -> tuple[str, str]:
    """A hosts file in which the name leads to an address that was free, and that address. Raises `ConfigError`.

    A line of ours that gave the name before, and whose client is gone, makes room for it.
    """
    kept = "".join(line for line in hosts.splitlines(keepends=True) if not _is_ours(line, name))
    taken = {int(number) for number in _TAKEN.findall(kept)}
    free = next((number for number in range(2, 255) if number not in taken), None)
    if free is None:
        raise ConfigError("name", name, "no more than 253 names can lead to the guest's loopback")
    address = f"127.0.1.{free}"
    return f"{address}\t{name}{_MARK}{kept}", address


def drop_line(hosts: str, name: str, address: str) -> str:
    """A hosts file without the line that leads the name to this address."""
    return "".join(line for line in hosts.splitlines(keepends=True) if line != f"{address}\t{name}{_MARK}")


def drop_lines(hosts: str) -> str:
    """A hosts file without the lines that we wrote."""
    return "".join(line for line in hosts.splitlines(keepends=True) if not line.endswith(_MARK))


def _is_ours(line: str, name: str) -> bool:
    return line.endswith(f"\t{name}{_MARK}")

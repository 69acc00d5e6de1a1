"""A program in the guest that asks for a way out, as what serves it sees it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmfork.agent.tunnel import GuestConnection


_END_LIMIT_S = 30.0


class Hasty(Exception):
    """The caller ended before it had said all that its protocol needs, or said something else."""


class Caller:
    """A guest's connection of which what was read too far can be given back."""

    def __init__(self, connection: GuestConnection) -> None:
        self.connection = connection
        self._held = b""

    async def read(self) -> bytes:
        """What came next; empty once the program sends nothing more."""
        held, self._held = self._held, b""
        return held or await self.connection.read()

    async def read_exactly(self, size: int) -> bytes:
        """The next `size` bytes. Raises `Hasty` when fewer come."""
        data = b""
        while len(data) < size:
            if not (more := await self.read()):
                raise Hasty
            data += more
        self.give_back(data[size:])
        return data[:size]

    async def peek(self) -> bytes:
        """What comes next, which is still to be read. Raises `Hasty` when nothing does."""
        if not (data := await self.read()):
            raise Hasty
        self.give_back(data)
        return data

    def give_back(self, data: bytes) -> None:
        """It is read again, before what comes."""
        self._held = data + self._held

    async def write(self, data: bytes) -> None:
        """The bytes are on their way to the program."""
        await self.connection.write(data)

    async def end(self) -> None:
        """The program was sent all there is, and has taken it, or had 30 seconds for that."""
        await self.connection.write_eof()
        with suppress(TimeoutError):
            async with asyncio.timeout(_END_LIMIT_S):
                while await self.read():
                    pass
                await self.connection.wait_closed()

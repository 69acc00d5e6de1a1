"""The host's end of a line to the interpreters of a guest: what was asked on it last, and how it is broken off."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, NamedTuple, cast

from vmfork.agent.exchange import CHUNK_SIZE
from vmfork.agent.tunnel import tunnel_of
from vmfork.code.door import find_connection, open_connection
from vmfork.code.frame import Ask, encode_ask
from vmfork.errors import GuestError
from vmfork.owner import Owner

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmfork.agent.client import AgentClient
    from vmfork.agent.tunnel import GuestConnection
    from vmfork.machine.running import Running

# So many interpreters may be asked in turn, and none be connected to anew.
_MOST_IDLE = 4
_GONE = "the server of interpreters in the guest has ended"


class Place(NamedTuple):
    """Where code runs: in which interpreter, and with what in its environment."""

    language: str
    context: str
    env: Mapping[str, str]


class CodeLine(Owner):
    """One call at a time. When it was answered, the interpreter waits for the next on this line itself."""

    def __init__(self, connection: GuestConnection, name: str) -> None:
        self._connection = connection
        self._name = name
        self.place: Place | None = None

    @property
    def is_idle(self) -> bool:
        """Whether nothing came that nobody asked for, not even its end."""
        tunnel = tunnel_of(self._connection)
        return not (tunnel.has_ended or tunnel.is_at_end or tunnel.has_waiting)

    async def ask(self, source: str, place: Place, *, restart: bool, made_in: str) -> None:
        """The code is on its way there."""
        if place == self.place and not (restart or made_in):
            request = encode_ask(Ask.AGAIN, source.encode())
        else:
            asked = {**place._asdict(), "code": source, "restart": restart, "made_in": made_in}
            request = encode_ask(Ask.RUN, json.dumps(asked).encode())
            self.place = place
        # Around the connection's own checks, which take as long as the rest: it is ours, and was looked at (`is_idle`).
        tunnel = tunnel_of(self._connection)
        if len(request) <= tunnel.room:
            tunnel.put(request)
        else:
            await self._connection.write(request)

    async def read(self) -> bytes:
        """What comes next. Raises `GuestError` at the end."""
        tunnel = tunnel_of(self._connection)
        data = await tunnel.next_piece(CHUNK_SIZE)
        tunnel.take(len(data))
        if not data:
            raise GuestError(_GONE, hint="its state is lost: call again")
        return data

    async def interrupt(self, agent: AgentClient, *, grace_s: float) -> None:
        """What runs here is interrupted, and killed after `grace_s` seconds. Nothing more may be asked on this line."""
        other = await find_connection(agent, _make_name())
        if other is None:
            return  # its end is told here
        async with other:
            await other.write(encode_ask(Ask.INTERRUPT, f"{grace_s} {self._name}".encode()))

    async def abort(self) -> None:
        """It is gone; what runs here is interrupted, and killed when it goes on."""
        await self._connection.abort()

    async def aclose(self) -> None:
        """It is closed."""
        await self._connection.aclose()


async def take_idle_line(running: Running, place: Place) -> CodeLine | None:
    """The line that was last asked for that place, if it is there. Those that have ended are let go of."""
    lines = cast("list[CodeLine]", running.idle_lines)
    for line in [line for line in lines if not line.is_idle]:
        lines.remove(line)
        await line.abort()
    for line in lines:
        if line.place == place:
            lines.remove(line)
            return line
    return None


async def open_line(running: Running) -> CodeLine:
    """A line on which nothing was asked yet."""
    name = _make_name()
    return CodeLine(await open_connection(running.agent, name), name)


async def give_line(running: Running, line: CodeLine) -> None:
    """It waits for the next call; the one that has waited longest goes where there are too many."""
    running.idle_lines.append(line)
    if len(running.idle_lines) > _MOST_IDLE:
        await running.idle_lines.pop(0).aclose()


def _make_name() -> str:
    return secrets.token_hex(8)

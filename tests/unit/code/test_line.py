"""What is said on a line: all of it at first, and the code alone where nothing else has changed."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from vmfork.code.frame import Ask, encode_ask
from vmfork.code.line import CodeLine, Place, give_line, take_idle_line
from vmfork.errors import GuestError

HERE = Place("python", "", {"A": "1"})
THERE = Place("python", "other", {"A": "1"})


class Connection:
    """Takes what is written, `room` bytes at once, and has nothing to say."""

    def __init__(self, *, room: int = 1 << 16) -> None:
        self.written: list[bytes] = []
        self.put: list[bytes] = []
        self.is_open = True
        self._tunnel = SimpleNamespace(
            has_ended=False,
            is_at_end=False,
            has_waiting=False,
            room=room,
            put=self._put,
            next_piece=self._read,
            take=lambda _size: None,
        )

    def _put(self, data: bytes) -> int:
        self.put.append(data)
        self.written.append(data)
        return len(data)

    async def write(self, data: bytes) -> None:
        self.written.append(data)

    async def _read(self, _most: int) -> bytes:
        return b""

    async def abort(self) -> None:
        self.is_open = False

    aclose = abort


async def ask(line: CodeLine, code: str, place: Place, **options: object) -> bytes:
    await line.ask(code, place, **{"restart": False, "made_in": "", **options})
    return line._connection.written[-1]


async def test_only_the_code_is_said_where_nothing_else_has_changed() -> None:
    line = CodeLine(Connection(), "me")
    first = await ask(line, "1", HERE)
    asked = {"language": "python", "context": "", "env": {"A": "1"}, "code": "1", "restart": False, "made_in": ""}
    assert first == encode_ask(Ask.RUN, json.dumps(asked).encode())
    assert await ask(line, "é", HERE) == encode_ask(Ask.AGAIN, "é".encode())
    for options in ({"restart": True}, {"made_in": "/out"}):
        assert (await ask(line, "1", HERE, **options))[4] == Ask.RUN
        assert (await ask(line, "1", HERE))[4] == Ask.AGAIN
    for place in (THERE, HERE, HERE._replace(env={"A": "2"}), HERE._replace(language="sh")):
        assert (await ask(line, "1", place))[4] == Ask.RUN


async def test_what_has_room_goes_at_once_and_what_has_none_waits_for_it() -> None:
    line = CodeLine(Connection(room=200), "me")
    assert await ask(line, "1", HERE) in line._connection.put
    assert await ask(line, "1" * 300, HERE) not in line._connection.put


async def test_the_line_of_a_place_is_found_again_and_what_has_ended_is_not() -> None:
    running = SimpleNamespace(idle_lines=[])
    here, there = CodeLine(Connection(), "me"), CodeLine(Connection(), "other")
    lines = ((HERE, here), (THERE, there))
    for place, line in lines:
        await ask(line, "1", place)
        await give_line(running, line)
    assert await take_idle_line(running, HERE) is here
    there._connection._tunnel.has_waiting = True
    await give_line(running, here)
    assert await take_idle_line(running, HERE) is here
    assert running.idle_lines == []
    assert not there._connection.is_open


async def test_of_many_lines_the_one_that_waited_longest_is_closed() -> None:
    running = SimpleNamespace(idle_lines=[])
    lines = [CodeLine(Connection(), str(number)) for number in range(5)]
    for line in lines:
        await give_line(running, line)
    assert running.idle_lines == lines[1:]
    assert [line._connection.is_open for line in lines] == [False, True, True, True, True]


async def test_a_server_that_has_ended_is_told() -> None:
    with pytest.raises(GuestError, match="has ended"):
        await CodeLine(Connection(), "me").read()

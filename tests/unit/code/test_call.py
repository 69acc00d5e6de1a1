"""What becomes of a call by what comes of it."""

from __future__ import annotations

import json
import struct
from types import SimpleNamespace

import pytest

from vmfork.code import call
from vmfork.code.frame import Answer
from vmfork.code.source import Code
from vmfork.errors import GuestFileError, LimitExceeded

MADE = {"/out/a": b"12345", "/out/b": b"67890"}


def say(kind: Answer, payload: bytes) -> bytes:
    return struct.pack("!IB", len(payload), kind) + payload


class Line:
    """Of code that has written five bytes and made two files, one of which is gone again."""

    async def ask(self, *_given, **_options) -> None:
        pass

    async def read(self) -> bytes:
        files = json.dumps(["a", "b", "gone"]).encode()
        return say(Answer.STDOUT, b"wrote") + say(Answer.FILES, files) + say(Answer.VALUE, b"1")

    async def abort(self) -> None:
        raise AssertionError


class Agent:
    """Has the files, and gives no more than it is asked for."""

    async def read_file(self, path, *, max_bytes) -> bytes:
        if path not in MADE:
            raise GuestFileError("read", path, "not-found", "it is gone")
        if max_bytes is not None and len(MADE[path]) > max_bytes:
            raise LimitExceeded(f"reading {path}", max_bytes, content=MADE[path][:max_bytes])
        return MADE[path]


@pytest.fixture
def run(monkeypatch):
    async def take_idle_line(*_given) -> Line:
        return Line()

    async def give_line(*_given) -> None:
        pass

    for stand_in in (take_idle_line, give_line):
        monkeypatch.setattr(call, stand_in.__name__, stand_in)
    monkeypatch.setattr(call, "find_program_env", lambda _running: {})

    async def run(max_output):
        running = SimpleNamespace(env={}, agent=Agent())
        return await call.run_code(running, Code(source="x", made_in="/out"), max_output=max_output)

    return run


@pytest.mark.parametrize("enough", [16, None])
async def test_files_that_it_made_are_given_where_they_have_room_behind_what_it_wrote(run, enough) -> None:
    done = await run(enough)
    assert (done.stdout, done.value, done.files) == ("wrote", "1", MADE)


@pytest.mark.parametrize("most", [15, 10, 6])
async def test_files_that_are_more_than_it_may_give_are_an_error_that_has_what_it_wrote(run, most) -> None:
    with pytest.raises(LimitExceeded, match=f"the code gave more than {most} bytes") as caught:
        await run(most)
    assert caught.value.stdout == b"wrote"
    assert "max_output" in caught.value.hint

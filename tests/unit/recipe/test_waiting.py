"""What is told of a condition that never came true."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from vmfork.errors import DeadlineExceeded
from vmfork.recipe import waiting
from vmfork.recipe.step import Ready
from vmfork.recipe.surroundings import Surroundings


@pytest.mark.parametrize(("cut_off", "told"), [(b"", "almost"), (b"nearly", "nearly")])
async def test_what_the_command_wrote_last_is_told_also_where_its_last_attempt_had_no_time(
    monkeypatch, cut_off, told
) -> None:
    attempts = []

    async def run_program(_running, _command, *, timeout_s):
        attempts.append(timeout_s)
        if len(attempts) == 1:
            return SimpleNamespace(ok=False, stdout_bytes=b"almost", stderr_bytes=b"")
        await asyncio.sleep(timeout_s)
        raise DeadlineExceeded("the program", timeout_s, stdout=cut_off)

    monkeypatch.setattr(waiting, "run_program", run_program)
    monkeypatch.setattr(waiting, "find_program_env", lambda _: {})
    monkeypatch.setattr(waiting, "_PAUSE_S", 0.0)
    step = Ready(condition="command", value="try", timeout_s=0.2)
    with pytest.raises(DeadlineExceeded) as caught:
        await waiting.wait_ready(SimpleNamespace(), step, Surroundings(), None)
    assert len(attempts) == 2
    assert f"its last standard output:\n{told}" in caught.value.details()

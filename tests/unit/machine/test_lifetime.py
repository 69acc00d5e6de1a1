"""A machine of one owner ends by itself when its time is over, and says so."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.machine.test_ending import Ended
from vmfork.errors import ConfigError, MachineEnded
from vmfork.machine.ending import watch_end
from vmfork.machine.lifetime import TTL_OVER, Life, limit_life
from vmfork.machine.request import ForkRequest

LIMIT_S = 60


class Used(Ended):
    """A machine and the line to its agent, of which the test says how long nobody has used it."""

    def __init__(self) -> None:
        super().__init__("", answers=True)
        self.closed = asyncio.get_running_loop().create_future()
        self.unused_s = [0.0]
        self.looks = asyncio.Event()

    @property
    def idle_s(self) -> float:
        self.looks.set()
        return self.unused_s[0] if len(self.unused_s) == 1 else self.unused_s.pop(0)

    def fail(self, reason: Exception) -> None:
        super().fail(reason)
        if not self.closed.done():
            self.closed.set_result(None)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"ttl_s": 0.01, "idle_ttl_s": 0.0}, "its time to live is over"),
        ({"ttl_s": 0.0, "idle_ttl_s": 0.01}, "nobody used it for as long as it may be idle"),
    ],
)
async def test_it_is_ended_and_whoever_uses_it_is_told_why(limits, reason) -> None:
    both = Used()
    both.unused_s = [1.0]
    watch_end(both, both)
    limit_life(both, both, **limits)
    await asyncio.wait_for(both.closed, LIMIT_S)
    assert both.killed
    assert isinstance(both.lost, MachineEnded)
    assert (both.lost.reason, str(both.lost)) == (reason, f"the machine ended: {reason}")
    assert next(name for name in limits if limits[name]) in both.lost.hint


async def test_it_is_looked_at_again_when_it_was_used_meanwhile() -> None:
    both = Used()
    both.unused_s = [0.0, 0.005, 0.02]
    limit_life(both, both, ttl_s=0.0, idle_ttl_s=0.01)
    await asyncio.wait_for(both.closed, LIMIT_S)
    assert both.unused_s == [0.02]


async def test_without_limits_or_after_its_end_nothing_waits() -> None:
    both = Used()
    limit_life(both, both, ttl_s=0.0, idle_ttl_s=0.0)
    limit_life(both, both, ttl_s=0.01, idle_ttl_s=0.01)
    both.closed.set_result(None)
    await asyncio.sleep(0.05)
    assert (both.killed, both.looks.is_set()) == (False, False)


@pytest.mark.parametrize("name", ["ttl_s", "idle_ttl_s"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "an hour", True, None])
def test_what_is_no_time_is_refused(name, value) -> None:
    with pytest.raises(ConfigError, match="time to live") as error:
        ForkRequest(**{name: value})
    assert error.value.field == name


def test_what_is_left_of_a_life_becomes_less_and_is_told_when_it_is_over(monkeypatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    life, endless = Life.begin(ttl_s=60, idle_ttl_s=5), Life.begin(ttl_s=0, idle_ttl_s=0)
    now[0] += 59
    assert (life.left_s(), endless.left_s()) == (1, 0)
    now[0] += 1
    with pytest.raises(MachineEnded, match=TTL_OVER):
        life.left_s()
    assert endless.left_s() == 0

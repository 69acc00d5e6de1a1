"""A look: turns, the round that does not count, the time that is up, and what is made of the samples."""

from __future__ import annotations

import pytest

from vmfork.bench import look as module
from vmfork.bench import raw
from vmfork.bench.look import Look, take_look
from vmfork.errors import HostError


class NamedTemplate:
    name = "py"


@pytest.fixture
def turns(monkeypatch):
    """The sides in the order they were measured in; each takes as long as the test says."""
    took: list[str] = []

    async def get_source(_template, *, places):
        return raw.Source([], {})

    async def time_phases(_template):
        took.append("vmfork")
        return {"fork": 0.1, "first_exec": 0.2 + len(took) / 1000}

    def time_one(_source):
        took.append("raw")
        return 0.2

    monkeypatch.setattr(module, "get_source", get_source)
    monkeypatch.setattr(module, "time_phases", time_phases)
    monkeypatch.setattr(module.raw, "time_one", time_one)
    return took


async def test_both_sides_take_turns_and_the_first_round_does_not_count(turns):
    look = await take_look(NamedTemplate(), places=None, rounds=4)
    assert look.rounds == 4
    assert turns == ["raw", "vmfork", "vmfork", "raw"] * 2 + ["raw", "vmfork"]
    assert len(look.samples["first_exec"]) == len(look.samples["fork"]) == 4


async def test_a_slow_host_ends_it_after_the_least_rounds(turns, monkeypatch):
    monkeypatch.setattr(module, "LIMIT_S", 0.0)
    assert (await take_look(NamedTemplate(), places=None, rounds=20)).rounds == module._LEAST_ROUNDS


async def test_a_fork_by_hand_that_fails_is_told_with_what_to_do(turns, monkeypatch):
    def fails(_source):
        raise ConnectionError("the agent is gone")

    monkeypatch.setattr(module.raw, "time_one", fails)
    with pytest.raises(HostError, match="by hand failed: the agent is gone") as found:
        await take_look(NamedTemplate(), places=None, rounds=1)
    assert found.value.hint


def test_figures_are_medians_and_their_ratio():
    figures = Look({"fork": [0.1, 0.2, 0.3], "first_exec": [0.3, 0.4, 0.5], "raw": [0.2, 0.2, 0.2]}).figures()
    assert {name: round(figure.value, 6) for name, figure in figures.items()} == {
        "fork_s": 0.2,
        "first_exec_s": 0.4,
        "raw_s": 0.2,
        "ratio": 2.0,
    }
    assert figures["ratio"].low <= 2.0 <= figures["ratio"].high

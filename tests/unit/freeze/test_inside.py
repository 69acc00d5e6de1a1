"""Forks asked for from inside: who is counted, told and closed. The machines here are fakes; real ones in tests/vm."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest

from vmfork.errors import ConfigError, GuestError, HostError, LaunchError, NoRoom, ProtocolError
from vmfork.freeze import inside
from vmfork.freeze.inside import Family, Inside, Terms
from vmfork.machine.lifetime import Life
from vmfork.wire.message import Asked

LIMIT_S = 20.0


class FakeAgent:
    """Notes what programs are answered, by their numbers; `waits`: they do."""

    waits = True
    is_abandoned = False

    def __init__(self) -> None:
        self.lost = None
        self.closed = asyncio.get_running_loop().create_future()
        self.answers: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
        self.take = None

    async def serve(self, take):
        self.take = take
        reply = asyncio.get_running_loop().create_future()
        return SimpleNamespace(reply=reply, answered=lambda _number: None, has_ended=False)

    def abandon(self, _serving) -> None:
        self.is_abandoned = True

    async def answer(self, number: int, answer: bytes, **_limit: object) -> bool:
        self.answers.put_nowait((number, answer))
        return self.waits

    def ask(self, question: bytes | None, number: int = 1) -> None:
        self.take(Asked(number, 42, question))

    async def answered(self) -> bytes:
        return (await asyncio.wait_for(self.answers.get(), LIMIT_S))[1]


class FakeRunning:
    def __init__(self, name: str) -> None:
        self.id = name
        self.agent = FakeAgent()
        self.inside = None
        self.life = Life()
        self.policy = "none"
        self.facts = SimpleNamespace(card=None)
        self.is_closed = False
        self.left = SimpleNamespace(take_all=self._take_all)

    async def _take_all(self, _agent):
        return ()

    async def aclose(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            if not self.agent.closed.done():
                self.agent.closed.set_result(None)
            await self.inside.aclose()


@pytest.fixture
def made(monkeypatch) -> list[FakeRunning]:
    """The machines that were made, in order."""
    machines: list[FakeRunning] = []

    async def fork_running(_running, wanted, *, instance):
        new = [FakeRunning(f"vm{len(machines) + number}") for number in range(wanted.count)]
        machines.extend(new)
        return [SimpleNamespace(running=running) for running in new]

    monkeypatch.setattr(inside, "fork_running", fork_running)
    return machines


async def first_of_family(most: int) -> FakeRunning:
    terms = Terms(most=most, instance=None, timeout_s=1.0)
    running = FakeRunning("first")
    await Inside(running, Family(terms, make_vm=lambda adopted: adopted.running)).begin()
    return running


async def test_it_and_its_forks_are_told_who_they_are_and_it_how_they_ended(made) -> None:
    first = await first_of_family(3)
    first.agent.ask(b"fork 2")
    assert await first.agent.answered() == b"forked 0"
    assert [await each.agent.answered() for each in made] == [b"forked 1", b"forked 2"]
    assert first.inside.children == made
    first.agent.ask(b"wait")
    made[1].agent.ask(b"exit 3 two words")
    assert await first.agent.answered() == b"ended 2 vm1 3 two words"
    made[0].agent.ask(None)
    first.agent.ask(b"wait 100000")
    assert await first.agent.answered() == b"ended 1 vm0  its program ended without a word"
    first.agent.ask(b"wait")
    assert await first.agent.answered() == b"none"
    await first.aclose()
    assert all(each.is_closed for each in made)


async def test_what_a_fork_made_outlives_it_is_counted_and_is_closed_with_the_first(made) -> None:
    first = await first_of_family(2)
    first.agent.ask(b"fork 1")
    assert await first.agent.answered() == b"forked 0"
    assert await made[0].agent.answered() == b"forked 1"
    made[0].agent.ask(b"fork 1")
    assert await made[0].agent.answered() == b"forked 0"
    made[0].agent.ask(b"exit 0 ")
    first.agent.ask(b"wait")
    assert await first.agent.answered() == b"ended 1 vm0 0 "
    assert not made[1].is_closed
    first.agent.ask(b"fork 2")
    assert (await first.agent.answered()).startswith(b"refused limit 2 machines may live beside the first, 1 do")
    await first.aclose()
    assert made[1].is_closed


@pytest.mark.parametrize(
    ("error", "reason"),
    [(NoRoom("memory", "5 of 7"), "no-room"), (HostError("not enough"), "no-room"), (LaunchError("x"), "failed")],
)
async def test_a_failure_is_told_without_what_the_host_has_and_takes_no_place(monkeypatch, made, error, reason) -> None:
    works = inside.fork_running

    async def fails(*_args, **_kwargs):
        raise error

    first = await first_of_family(1)
    monkeypatch.setattr(inside, "fork_running", fails)
    first.agent.ask(b"fork 1")
    answer = await first.agent.answered()
    assert answer.startswith(f"refused {reason} ".encode())
    assert str(error).encode() not in answer
    monkeypatch.setattr(inside, "fork_running", works)
    first.agent.ask(b"fork 1")
    assert await first.agent.answered() == b"forked 0"
    await first.aclose()


async def test_a_fork_in_which_nobody_waits_is_closed_and_told_of(made, monkeypatch) -> None:
    first = await first_of_family(1)
    monkeypatch.setattr(FakeAgent, "waits", False)
    first.agent.ask(b"fork 1")
    assert await first.agent.answered() == b"forked 0"
    first.agent.ask(b"wait")
    assert b"its program could not be told" in await first.agent.answered()
    await first.aclose()
    assert made[0].is_closed


async def test_only_the_program_that_asked_ends_its_fork(made) -> None:
    first = await first_of_family(1)
    first.agent.ask(b"exit 1 no")
    assert (await first.agent.answered()).startswith(b"refused not-allowed")
    first.agent.ask(b"fork 1")
    await first.agent.answered()
    await made[0].agent.answered()
    made[0].agent.ask(b"exit 1 no", number=2)
    assert (await made[0].agent.answered()).startswith(b"refused not-allowed")
    made[0].agent.ask(None, number=2)
    made[0].agent.ask(b"wait", number=3)
    assert await made[0].agent.answered() == b"none"
    assert not made[0].is_closed
    await first.aclose()


async def test_its_owner_may_close_a_fork_and_closes_all_while_one_is_being_made(made, monkeypatch) -> None:
    first = await first_of_family(3)
    first.agent.ask(b"fork 1")
    await first.agent.answered()
    await made[0].aclose()
    first.agent.ask(b"wait")
    assert await first.agent.answered() == b"ended 1 vm0  its machine ended"
    begun, ended = asyncio.Event(), asyncio.Event()

    async def takes_long(*_args, **_kwargs):
        begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()

    monkeypatch.setattr(inside, "fork_running", takes_long)
    first.agent.ask(b"fork 1")
    await begun.wait()
    await first.aclose()
    assert ended.is_set()


async def test_a_wait_has_an_end_and_one_who_waits_and_is_gone_is_forgotten(made) -> None:
    first = await first_of_family(2)
    first.agent.ask(b"fork 1")
    await first.agent.answered()
    first.agent.ask(b"wait 1")
    assert await first.agent.answered() == b"silent"
    first.agent.ask(b"wait 60000")
    first.agent.ask(None)
    first.agent.ask(b"wait", number=2)
    assert await first.agent.answered() == b"none"
    made[0].agent.ask(b"exit 0 nobody waits")
    await asyncio.wait_for(asyncio.shield(made[0].agent.closed), LIMIT_S)
    await first.aclose()


@pytest.mark.parametrize(
    "question",
    [
        b"",
        b"fork",
        b"fork 0",
        b"fork -1",
        b"fork 1 2",
        b"fork 9999999999999",
        "fork ²".encode(),
        b"wait x",
        b"\xff",
        b"x",
    ],
)
async def test_what_makes_no_sense_is_refused(made, question) -> None:
    first = await first_of_family(1)
    first.agent.ask(question)
    assert (await first.agent.answered()).startswith(b"refused failed ")
    first.agent.ask(b"wait")
    assert await first.agent.answered() == b"none"
    assert made == []
    await first.aclose()


async def test_a_guest_that_says_more_than_programs_can_loses_its_line(made) -> None:
    first = await first_of_family(1)
    with pytest.raises(ProtocolError, match="faster than they can"):
        for number in range(1, 1000):
            first.agent.ask(None, number=number)
    await first.aclose()


async def test_it_ends_with_the_machine(made) -> None:
    """An agent that is gone is no error of anybody's."""
    first = await first_of_family(1)

    async def gone(*_args, **_limit):
        raise GuestError("gone")

    first.agent.answer = gone
    first.agent.ask(b"wait")
    await asyncio.wait_for(asyncio.shield(first.inside._task), LIMIT_S)
    await first.aclose()


async def test_when_something_goes_wrong_programs_do_not_wait_for_ever(made, monkeypatch, caplog) -> None:
    async def breaks(*_args, **_kwargs):
        raise AttributeError("what nobody foresaw")

    first = await first_of_family(1)
    monkeypatch.setattr(inside, "fork_running", breaks)
    first.agent.ask(b"fork 1")
    await asyncio.wait_for(asyncio.shield(first.inside._task), LIMIT_S)
    assert first.agent.is_abandoned
    assert "what nobody foresaw" in caplog.text
    await first.aclose()


async def test_a_fork_lives_no_longer_and_reaches_what_its_machine_may_by_then(made, monkeypatch) -> None:
    """What the host has changed since it allowed it holds."""
    asked = []
    first = await first_of_family(3)
    works = inside.fork_running

    async def notes(running, wanted, *, instance):
        asked.append(wanted.request)
        return await works(running, wanted, instance=instance)

    monkeypatch.setattr(inside, "fork_running", notes)
    first.life, first.policy = Life.begin(ttl_s=60, idle_ttl_s=7), "all"
    first.agent.ask(b"fork 1")
    assert await first.agent.answered() == b"forked 0"
    first.policy = "none"
    first.agent.ask(b"fork 1")
    assert await first.agent.answered() == b"forked 0"
    assert [(each.network, each.idle_ttl_s, 50 < each.ttl_s <= 60) for each in asked] == [
        ("all", 7, True),
        ("none", 7, True),
    ]
    first.life = Life(time.monotonic() - 1, 0)
    first.agent.ask(b"fork 1")
    assert (await first.agent.answered()).startswith(b"refused failed")
    await first.aclose()


async def test_where_it_has_gone_back_to_its_programs_may_fork_it_again(made) -> None:
    first, again = await first_of_family(1), FakeRunning("again")
    first.agent.ask(b"fork 1")
    await first.agent.answered()
    first.inside.check_return()
    with pytest.raises(ConfigError, match="lasts as long as the program"):
        made[0].inside.check_return()
    await first.inside.aclose()
    assert made[0].is_closed
    await first.inside.follow(again)
    again.agent.ask(b"fork 1")
    assert await again.agent.answered() == b"forked 0"
    again.agent.ask(b"fork 1")
    assert (await again.agent.answered()).startswith(b"refused limit")
    assert again.inside.children == [made[1]]
    await again.aclose()
    assert made[1].is_closed

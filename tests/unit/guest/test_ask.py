"""Programs of the guest ask, and whoever serves them answers: also another one, whom the first has left them to."""

from __future__ import annotations

import asyncio
import socket
from contextlib import closing

import pytest

from tests.unit.guest.test_left import next_client
from vmfork.agent.client import AgentClient
from vmfork.errors import GuestError
from vmfork.wire.frame import MOST_ASKING

LIMIT_S = 20


class Questions:
    """What the agent told of, one after the other."""

    def __init__(self) -> None:
        self._told: asyncio.Queue = asyncio.Queue()

    def take(self, asked) -> None:
        self._told.put_nowait(asked)

    async def next(self):
        return await asyncio.wait_for(self._told.get(), LIMIT_S)

    @property
    def is_empty(self) -> bool:
        return self._told.empty()


class Program:
    """A program of the guest's end: the test itself."""

    def __init__(self, root) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(LIMIT_S)
        try:
            self.sock.connect(str(root / "run/vmfork/ask"))
        except BaseException:
            self.sock.close()
            raise

    def ask(self, question: bytes) -> None:
        self.sock.send(question)

    async def answer(self) -> bytes:
        return await asyncio.to_thread(self.sock.recv, 8192)

    def close(self) -> None:
        self.sock.close()


@pytest.fixture
def root(root_dir):
    return root_dir


async def test_a_question_is_told_and_its_answer_goes_back(agent, root) -> None:
    questions = Questions()
    await agent.serve(questions.take)
    with closing(Program(root)) as one, closing(Program(root)) as other:
        one.ask(b"fork 2")
        asked = await questions.next()
        assert asked.question == b"fork 2"
        assert asked.pid > 0
        other.ask(b"wait")
        second = await questions.next()
        assert second.number != asked.number
        assert await agent.answer(second.number, b"none")
        assert await agent.answer(asked.number, b"forked 0")
        assert (await one.answer(), await other.answer()) == (b"forked 0", b"none")


async def test_of_one_that_waits_nothing_more_is_read(agent, root) -> None:
    questions = Questions()
    serving = await agent.serve(questions.take)
    with closing(Program(root)) as program:
        program.ask(b"first")
        program.ask(b"second")
        asked = await questions.next()
        await agent.ping()
        assert questions.is_empty
        serving.answered(asked.number)
        assert await agent.answer(asked.number, b"one")
        again = await questions.next()
        assert (again.number, again.question) == (asked.number, b"second")
        assert not await agent.answer(asked.number + 1, b"nobody")


async def test_one_that_is_gone_is_told_of_while_it_waits_and_afterwards(agent, root) -> None:
    questions = Questions()
    serving = await agent.serve(questions.take)
    program = Program(root)
    program.ask(b"fork 1")
    asked = await questions.next()
    program.close()
    gone = await questions.next()
    assert (gone.number, gone.question) == (asked.number, None)
    assert not await agent.answer(asked.number, b"forked 0")
    program = Program(root)
    program.ask(b"fork 1")
    asked = await questions.next()
    serving.answered(asked.number)
    assert await agent.answer(asked.number, b"forked 0")
    program.close()
    assert (await questions.next()).question is None


async def test_nobody_can_ask_before_somebody_answers_or_afterwards(agent, root) -> None:
    with pytest.raises(FileNotFoundError):
        Program(root)
    questions = Questions()
    serving = await agent.serve(questions.take)
    with pytest.raises(GuestError, match="somebody answers programs already"):
        await agent.serve(questions.take)
    with closing(Program(root)) as program:
        program.ask(b"fork 1")
        await questions.next()
        agent.abandon(serving)
        assert await program.answer() == b""
    with pytest.raises(FileNotFoundError):
        Program(root)


async def test_the_one_who_answers_next_is_told_of_each_that_waits(start_agent, root) -> None:
    """In a fork of a running machine the programs that wait are the same, and another host answers."""
    running = start_agent("--root", str(root))
    questions = Questions()
    client = await AgentClient.open(running.sock.dup())
    serving = await client.serve(questions.take)
    with closing(Program(root)) as one, closing(Program(root)) as other, closing(Program(root)) as silent:
        asked = []
        for program in (one, other, silent):  # one after the other: of several the agent hears any first
            program.ask(b"fork 1")
            asked.append(await questions.next())
        first, second, third = asked
        serving.answered(third.number)
        assert await client.answer(third.number, b"forked 0")
        client.drop()
        async with next_client(running, keep=("programs", "asks")) as client:
            # Before it serves, it answers the one that asked for it.
            assert await client.answer(first.number, b"forked 1")
            anew = Questions()
            await client.serve(anew.take)
            again = await anew.next()
            assert (again.number, again.question) == (second.number, b"fork 1")
            assert await client.answer(second.number, b"forked 0")
            silent.close()
            assert await anew.next() == (third.number, 0, None)
            assert (await one.answer(), await other.answer()) == (b"forked 1", b"forked 0")
            with closing(Program(root)) as later:
                later.ask(b"wait")
                assert (await anew.next()).question == b"wait"


async def test_a_greeting_that_does_not_leave_them_lets_them_go(start_agent, root) -> None:
    running = start_agent("--root", str(root))
    client = await AgentClient.open(running.sock.dup())
    questions = Questions()
    await client.serve(questions.take)
    with closing(Program(root)) as program:
        program.ask(b"fork 1")
        await questions.next()
        client.drop()
        async with next_client(running, keep=("programs",)):
            assert await program.answer() == b""
            with pytest.raises(FileNotFoundError):
                Program(root)


async def test_more_than_may_ask_wait_until_one_is_gone(agent, root) -> None:
    questions = Questions()
    await agent.serve(questions.take)
    programs = [Program(root) for _ in range(MOST_ASKING + 1)]
    for program in programs:
        program.ask(b"wait")
    told = [await questions.next() for _ in range(MOST_ASKING)]
    await agent.ping()
    assert questions.is_empty
    assert len({asked.number for asked in told}) == MOST_ASKING
    programs[0].close()
    events = [await questions.next(), await questions.next()]
    assert sorted(event.question is None for event in events) == [False, True]
    for program in programs:
        program.close()


async def test_one_that_does_not_read_its_answers_is_let_go(agent, root) -> None:
    questions = Questions()
    serving = await agent.serve(questions.take)
    with closing(Program(root)) as program:
        program.sock.settimeout(0.2)
        answered = True
        while answered:
            program.ask(b"x" * 4000)
            asked = await questions.next()
            serving.answered(asked.number)
            answered = await agent.answer(asked.number, bytes(60_000))
    await agent.ping()


async def test_a_freeze_ends_it(agent, root) -> None:
    questions = Questions()
    serving = await agent.serve(questions.take)
    await agent.quiesce()
    with pytest.raises(GuestError, match="nobody answers programs"):
        await serving.reply
    with pytest.raises(FileNotFoundError):
        Program(root)

"""Forks that programs of a machine ask for themselves, by `vmfork_guest.fork()`: made, owned, and told of at their end.

```
program                      its machine's agent          Inside, in the owner's process
fork 2    ---- question ---->  EVENT asked  ------------>  the machine is forked, the program with it
forked 0  <---- answer ------  ANSWER       <------------  in the machine
forked 1  <---- answer ------  ANSWER       <------------  in the first fork: the same program, which waits there too
```
Of a question the first word says what is asked; of an answer, what came of it:

| question | answer |
| --- | --- |
| `fork COUNT` | `forked INDEX`: 0 in the machine, 1 to COUNT in its forks |
| `wait`, `wait MS` | `ended INDEX ID STATUS MESSAGE`; `none` where there is none, `silent` when the time is over |
| `exit STATUS MESSAGE` | the machine is gone |
| any | `refused REASON TEXT` |
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmfork.agent.change import Change
from vmfork.errors import ConfigError, DeadlineExceeded, GuestError, HostError, ProtocolError, VMForkError
from vmfork.freeze.fork import fork_running
from vmfork.journal import about
from vmfork.machine.request import ForkRequest, LiveFork
from vmfork.owner import Owner
from vmfork.wire.frame import MOST_ASKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from vmfork.agent.asks import Serving
    from vmfork.config import Instance
    from vmfork.machine.base import Adopted
    from vmfork.machine.running import Running
    from vmfork.wire.message import Asked

_log = logging.getLogger("vmfork")

# A program may ask as fast as it likes. What costs it nothing is answered so much later: 20 times a second.
_REST_S = 0.05
# A program that is gone was told of when its last descriptor was closed; its exit status comes right behind.
_STATUS_LIMIT_S = 5.0
# So many forks of a program that have ended are remembered until it waits for them.
_MOST_ENDED = 1000
_MOST_EVENTS = 4 * MOST_ASKING
_MOST_DIGITS = 12
_MOST_NUMBER = 10**_MOST_DIGITS
_NO_ROOM = "the host has no room for it, or cannot copy the machine"


class _RefusedError(Exception):
    """Why a program does not get what it asked for: a word for programs, and a text."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(f"{reason} {text}")


@dataclass(frozen=True, slots=True)
class _Ended:
    """How a fork ended: `status` is empty where it is not known."""

    index: int
    vm_id: str
    status: str
    message: str

    def encode(self) -> bytes:
        return f"ended {self.index} {self.vm_id} {self.status} {self.message}".encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What holds for all machines that are made from inside of one: how many may live, and how each is made."""

    most: int
    instance: Instance
    timeout_s: float


@dataclass(slots=True, eq=False)
class Child:
    """A machine that was made from inside of another, and what its end is told to."""

    index: int
    number: int
    inside: Inside
    parent: Inside
    vm: Owner


class Family(Owner):
    """Owner of all machines that were made from inside of one machine: of that, and of one another."""

    def __init__(self, terms: Terms, *, make_vm: Callable[[Adopted], Owner]) -> None:
        self.terms = terms
        self.make_vm = make_vm
        self.living: dict[str, Child] = {}
        self.change = Change()
        self._promised = 0
        self._closing: set[asyncio.Task[None]] = set()

    def promise(self, count: int) -> None:
        """There are places for so many more. Raises `_RefusedError` when there are not."""
        taken = len(self.living) + self._promised
        if taken + count > self.terms.most:
            raise _RefusedError("limit", f"{self.terms.most} machines may live beside the first, {taken} do")
        self._promised += count

    def give_back(self, count: int) -> None:
        """So many places that were promised are free, or taken by who lives now."""
        self._promised -= count

    def add(self, child: Child) -> None:
        """The machine is ours until it ends."""
        running = child.inside.running
        self.living[running.id] = child
        running.agent.closed.add_done_callback(lambda _: self.end(child, "", "its machine ended"))
        self.change.tell()

    def end(self, child: Child, status: str, message: str) -> None:
        """The machine is about to be gone, and whoever made it is told how it ended. The first to say so is heard."""
        vm_id = child.inside.running.id
        if self.living.pop(vm_id, None) is None:
            return
        child.parent.note_end(child.number, _Ended(child.index, vm_id, status, message))
        task = asyncio.get_running_loop().create_task(child.vm.aclose())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        self.change.tell()

    async def aclose(self) -> None:
        """None of them lives."""
        while self.living or self._closing:
            for child in list(self.living.values()):
                self.end(child, "", "its owner closed it")
            await asyncio.wait(set(self._closing))

    def drop(self) -> None:
        """None of them lives, at once and without an event loop."""
        living, self.living = self.living, {}
        for child in living.values():
            child.inside.running.end()


@dataclass(slots=True)
class _Asking:
    """A program that asked: how what it made has ended, and whether it waits for that."""

    ended: deque[_Ended] = field(default_factory=lambda: deque(maxlen=_MOST_ENDED))
    waits: bool = False
    is_over: bool = False
    timer: asyncio.TimerHandle | None = None

    def stop_waiting(self) -> None:
        """It has its answer, or is gone."""
        self.waits = self.is_over = False
        if self.timer is not None:
            self.timer.cancel()
        self.timer = None


class Inside(Owner):
    """Answers the programs of one machine, one question after the other, until the machine ends.

    `origin` is the number of the program that made the machine, and `origin_pid` its process id; 0 in the first of a
    family, which owns that.
    """

    def __init__(self, running: Running, family: Family, *, origin: int = 0, origin_pid: int = 0) -> None:
        self.running = running
        self.family = family
        self._origin = origin
        self._origin_pid = origin_pid
        self._agent = running.agent
        self._asking: dict[int, _Asking] = {}
        self._events: deque[Asked] = deque()
        self._change = Change()
        self._has_news = False
        self._serving: Serving | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_over = False
        running.inside = self

    async def begin(self) -> None:
        """Programs can ask. Raises `GuestError`."""
        self._serving = await self._agent.serve(self._take)
        self._serving.reply.add_done_callback(lambda _: self._tell())
        self._task = asyncio.get_running_loop().create_task(self._work(self._serving))

    async def follow(self, running: Running) -> None:
        """Programs of `running`, where the machine has gone back to, can ask, and none of its forks lives.

        Raises `GuestError`.
        """
        await Inside(running, Family(self.family.terms, make_vm=self.family.make_vm)).begin()

    def check_return(self) -> None:
        """Raises `ConfigError` when the machine cannot go back: the end of its program is to be its end."""
        if self._origin:
            reason = f"VM {self.running.id} was made from inside, and lasts as long as the program that asked for it"
            raise ConfigError("vm", self.running.id, reason, hint="fork it, and have that go back: vm.fork()")

    async def begin_in_fork(self, index: int) -> None:
        """The program that asked for this machine knows that it is in it, and others can ask. Raises `GuestError`."""
        if not await self._agent.answer(self._origin, b"forked %d" % index):
            raise GuestError("the program that asked for the fork does not wait in it")
        await self.begin()

    @property
    def children(self) -> list[Owner]:
        """The machines that programs of this one made, and that live."""
        return [child.vm for child in self.family.living.values() if child.parent is self]

    async def follow_children(self) -> AsyncIterator[Sequence[Owner]]:
        """`children` as it is, and whenever it has changed, until programs can ask no more."""
        told: list[Owner] | None = None
        while True:
            if (now := self.children) != told:
                told = now
                yield now
            elif self._is_over:
                return
            else:
                await self.family.change.next()

    def note_end(self, number: int, ended: _Ended) -> None:
        """The program that made it is told, when it asks."""
        asking = self._asking.get(number)
        if asking is not None:
            asking.ended.append(ended)
            self._tell()

    async def aclose(self) -> None:
        """Nobody answers any more; the first of a family has closed all that was made from inside of it."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        self._is_over = True
        self.family.change.tell()
        for asking in self._asking.values():
            asking.stop_waiting()
        if not self._origin:
            await self.family.aclose()

    def drop(self) -> None:
        """As `aclose`, at once and without an event loop."""
        if not self._origin:
            self.family.drop()

    def _take(self, event: Asked) -> None:
        if len(self._events) > _MOST_EVENTS:
            raise ProtocolError("programs of the guest ask, or end, faster than they can")
        self._events.append(event)
        self._tell()

    async def _work(self, serving: Serving) -> None:
        """Questions are answered until the machine has ended, or is not ours any more. Nobody waits in vain then."""
        try:
            await self._serve(serving)
        except VMForkError:
            pass  # whoever uses the machine is told
        except Exception:  # noqa: BLE001 - programs would wait, and nobody would know why
            _log.exception("programs of VM %s are not answered any more", self.running.id)
        finally:
            self._is_over = True
            self.family.change.tell()
            self._agent.abandon(serving)

    async def _serve(self, serving: Serving) -> None:
        while not serving.has_ended:
            self._has_news = False
            for number in [number for number, asking in self._asking.items() if asking.waits]:
                await self._answer_wait(number)
            if not self._events:
                await self._wait_news()
                continue
            event = self._events.popleft()
            if event.question is None:
                await self._note_gone(event.number)
            else:
                await self._heed(event.number, event.pid, event.question)

    async def _wait_news(self) -> None:
        if not self._has_news:
            await self._change.next()

    def _tell(self) -> None:
        self._has_news = True
        self._change.tell()

    async def _note_gone(self, number: int) -> None:
        asking = self._asking.pop(number, None)
        if asking is not None:
            asking.stop_waiting()
        child = self.family.living.get(self.running.id)
        if child is not None and number == self._origin:
            status = await self._find_status()
            self.family.end(child, status, "" if status else "its program ended without a word")

    async def _find_status(self) -> str:
        """The exit status of the program that made this machine, which is gone; empty where nobody here knows it."""
        for program in await self.running.left.take_all(self._agent):
            if program.pid == self._origin_pid:
                with suppress(DeadlineExceeded):
                    return str((await program.wait(timeout_s=_STATUS_LIMIT_S)).exit_code)
        return ""

    async def _heed(self, number: int, pid: int, question: bytes) -> None:
        try:
            await self._begin(number, pid, question)
        except _RefusedError as error:
            await asyncio.sleep(_REST_S)
            await self._answer(number, f"refused {error}".encode())

    async def _begin(self, number: int, pid: int, question: bytes) -> None:
        verb, _, rest = question.partition(b" ")
        asking = self._asking.setdefault(number, _Asking())
        if verb == b"fork":
            await self._fork(number, pid, _number(rest, most=_MOST_NUMBER))
        elif verb == b"wait":
            self._begin_wait(asking, rest)
        elif verb == b"exit":
            self._exit(number, rest)
        else:
            raise _RefusedError("failed", "the host knows no such question")

    async def _answer(self, number: int, answer: bytes) -> None:
        assert self._serving is not None
        self._serving.answered(number)
        # As long as the owner has the machine paused.
        await self._agent.answer(number, answer, timeout_s=None)

    async def _fork(self, number: int, pid: int, count: int) -> None:
        if count < 1:
            raise _RefusedError("failed", "a machine is forked once at least")
        self.family.promise(count)
        try:
            made = await self._make(count)
            children = [self._adopt(number, pid, index, adopted) for index, adopted in enumerate(made, 1)]
        finally:
            self.family.give_back(count)
        for child in children:
            try:
                await child.inside.begin_in_fork(child.index)
            except VMForkError as error:
                self.family.end(child, "", f"its program could not be told: {error}")
        await self._answer(number, b"forked 0")

    def _adopt(self, number: int, pid: int, index: int, adopted: Adopted) -> Child:
        inside = Inside(adopted.running, self.family, origin=number, origin_pid=pid)
        child = Child(index, number, inside, self, self.family.make_vm(adopted))
        self.family.add(child)
        return child

    async def _make(self, count: int) -> list[Adopted]:
        terms = self.family.terms
        try:
            wanted = LiveFork(
                count=count,
                request=self._find_request(),
                asks=True,
                timeout_s=terms.timeout_s,
                hook_timeout_s=terms.timeout_s,
            )
            return await fork_running(self.running, wanted, instance=terms.instance)
        except VMForkError as error:
            if self._agent.lost is not None:
                raise
            said = about("machine.inside", vm_id=self.running.id)
            _log.warning("VM %s was not forked as its program asked: %s", self.running.id, error, extra=said)
            # What the host lacks is nothing for a guest to know in detail.
            reason = ("no-room", _NO_ROOM) if isinstance(error, HostError) else ("failed", error.code)
            raise _RefusedError(*reason) from error

    def _find_request(self) -> ForkRequest:
        """A fork may reach what its machine may now, and lives no longer. Raises `MachineEnded`."""
        life = self.running.life
        card = self.running.facts.card
        return ForkRequest(
            network=self.running.policy,
            card="none" if card is None else card.choice,
            ttl_s=life.left_s(),
            idle_ttl_s=life.idle_ttl_s,
        )

    def _begin_wait(self, asking: _Asking, rest: bytes) -> None:
        if rest:
            limit_s = max(_number(rest, most=_MOST_NUMBER) / 1e3, _REST_S)
            asking.timer = asyncio.get_running_loop().call_later(limit_s, self._give_up, asking)
        asking.waits = True

    def _give_up(self, asking: _Asking) -> None:
        asking.is_over = True
        self._tell()

    async def _answer_wait(self, number: int) -> None:
        """The program that waits has an answer, if there is one."""
        asking = self._asking[number]
        if asking.ended:
            answer = asking.ended.popleft().encode()
        elif not any(child.parent is self and child.number == number for child in self.family.living.values()):
            await asyncio.sleep(_REST_S)
            answer = b"none"
        elif asking.is_over:
            answer = b"silent"
        else:
            return
        asking.stop_waiting()
        await self._answer(number, answer)

    def _exit(self, number: int, rest: bytes) -> None:
        status, _, message = rest.partition(b" ")
        child = self.family.living.get(self.running.id)
        if child is None or number != self._origin:
            raise _RefusedError("not-allowed", "this program did not come here by fork()")
        self.family.end(child, str(_number(status, most=255)), message.decode("utf-8", "replace"))


def _number(text: bytes, *, most: int) -> int:
    """The number in what a program said. Raises `_RefusedError`."""
    if not text.isdigit() or len(text) > _MOST_DIGITS or int(text) > most:
        raise _RefusedError("failed", "the host cannot read the number")
    return int(text)

"""One interpreter that keeps its state between calls, and the calls that wait for it."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import vmfork_guest

from .kinds import DONE, FILES, RESULT, RETURNED, RUN, VALUE
from .made import find_made, look
from .worker import Worker

if TYPE_CHECKING:
    from .languages import Language
    from .line import Line
    from .selector import Selector

# What code that nobody waits for any more has to end by itself.
LEFT_GRACE_S = 5.0


@dataclass(frozen=True)
class Asked:
    """What the host asks for. `env` is all that it says of the environment."""

    code: str
    language: str
    context: str
    restart: bool
    env: dict[str, str]
    made_in: str

    def again(self, code: str) -> Asked:
        """Other code in the same context."""
        return replace(self, code=code, restart=False, made_in="")


class Call:
    """What one client asked for. It is open until it was answered."""

    def __init__(self, line: Line, asked: Asked, context: Context) -> None:
        self.line = line
        self.asked = asked
        self.context = context
        self.is_open = True
        self.before = look(asked.made_in)

    def answer(self, kind: int, done: bytes) -> None:
        """The client has all of it."""
        self.is_open = False
        if self.asked.made_in:
            self.line.send(FILES, json.dumps(find_made(self.asked.made_in, self.before)).encode())
        self.line.send(kind, done)


class Context:
    """An interpreter, from the first call on; another begins where it has ended.

    It answers calls that it is sent, one at a time. When the last was answered, it is lent the line that this came by,
    and takes the next from there, of which nothing is seen here: only whether one runs. The line is asked back when
    another call waits, or when that one is to end.
    """

    def __init__(self, selector: Selector, language: Language) -> None:
        self._selector = selector
        self._language = language
        self._worker: Worker | None = None
        self._running: Call | None = None
        # The last call that was answered on the line that the interpreter has.
        self._lent: Call | None = None
        self._is_asked_back = False
        self._waiting: deque[Call] = deque()
        self._env: dict[str, str] = {}
        self._generation = ""
        self.kill_at: float | None = None

    def ask(self, call: Call) -> None:
        """The call is answered when those before it were."""
        self._waiting.append(call)
        self._begin_next()

    def interrupt(self, call: Call, *, grace_s: float) -> None:
        """The call ends: at once when it waits, else as by Ctrl-C, and killed after `grace_s` seconds.

        So does one that the interpreter took from the line of `call`.
        """
        if call in self._waiting:
            self._waiting.remove(call)
            call.answer(*failed("KeyboardInterrupt", "another call was running"))
        elif call in (self._running, self._lent) and self._worker is not None:
            if call is self._lent:
                self._ask_back(self._worker)
            self._worker.interrupt()
            if self._is_busy:
                end = time.monotonic() + grace_s
                self.kill_at = end if self.kill_at is None else min(end, self.kill_at)
            # What waits behind that is told last: it may be the end of the call.
            self.hold(is_held=False)

    @property
    def _is_busy(self) -> bool:
        """Whether a call runs; one that begins on a line that is lent ends by itself when it was interrupted before."""
        return self._running is not None or (self._worker is not None and self._worker.page.is_running)

    def kill_late(self, now: float) -> None:
        """An interpreter that was interrupted and goes on is killed."""
        if self.kill_at is not None and now >= self.kill_at and self._worker is not None:
            self.kill_at = None
            if self._is_busy:
                self._worker.kill()

    def let_on(self, call: Call) -> None:
        """Who asked for `call` takes again what is written: nothing is held for it."""
        if call in (self._running, self._lent):
            self.hold(is_held=False)

    def hold(self, *, is_held: bool) -> None:
        """Nothing is taken of the interpreter, which waits, while it is held."""
        if self._worker is not None:
            self._worker.hold(is_held=is_held)

    def _begin_next(self) -> None:
        while self._running is None and self._waiting:
            if self._lent is not None and self._worker is not None:
                self._ask_back(self._worker)
                return
            self._running = self._waiting.popleft()
            self._begin(self._running)

    def _begin(self, call: Call) -> None:
        now = vmfork_guest.generation()
        is_stale = now != self._generation and not self._language.is_renewed
        if self._worker is not None and (call.asked.restart or is_stale):
            self._worker.end()
            self._worker = None
        if self._worker is None:
            if (missing := self._language.find_missing()) is not None:
                self._finish(*failed("NotInstalled", missing))
                return
            self._worker, self._env = Worker(self._selector, self._language, self), {}
        asked = {
            "code": call.asked.code,
            "env": self._change(call.asked.env),
            "is_forked": now != self._generation,
        }
        self._generation = now
        self._worker.line.send(RUN, json.dumps(asked).encode())

    def _change(self, env: dict[str, str]) -> dict[str, str | None]:
        """What is others in the interpreter's environment than when it was last told; None for what is gone.

        What it was not told is what this process has.
        """
        before, self._env = self._env, env
        back = {key: os.environ.get(key) for key in before.keys() - env.keys() if os.environ.get(key) != before[key]}
        told = {key: value for key, value in env.items() if before.get(key, os.environ.get(key)) != value}
        return {**back, **told}

    def on_output(self, kind: int, data: bytes) -> None:
        """What comes while no call runs was written by something that one left running, and is nobody's."""
        call = (self._running or self._lent) if self._is_busy else None
        if call is not None:
            call.line.send(kind, data)
            if call.line.is_full:
                self.hold(is_held=True)

    def on_frame(self, kind: int, payload: bytes) -> None:
        """The interpreter gives a result, or is done, or gives the line back."""
        assert self._worker is not None
        if kind == RESULT:
            self.on_output(RESULT, payload)
        elif kind in (DONE, VALUE):
            self._worker.drain()
            self._finish(kind, payload)
        elif kind == RETURNED and self._lent is not None:
            self._take_back(payload)
        else:
            self._worker.kill()

    def on_end(self, how: str) -> None:
        """The interpreter has ended, and all it wrote was told."""
        was_busy, self._worker = self._is_busy, None
        if was_busy:
            self._finish(*failed("InterpreterEnded", how, is_lost=True))
        if self._lent is not None:
            self._take_back(b"")
        self._begin_next()

    def _finish(self, kind: int, done: bytes) -> None:
        """The call that runs was answered: one that was sent, or that the interpreter took from the line it has."""
        if self._worker is not None:
            self._worker.page.is_running = False
        self.hold(is_held=False)
        if self._running is None:
            if self._lent is not None:
                self._lent.line.send(kind, done)
            return
        call, self._running, self.kill_at = self._running, None, None
        if self._worker is not None:
            self._worker.page.is_stopped = False
        call.answer(kind, done)
        self._begin_next()
        if self._running is None and self._lent is None:
            self._lend(call)

    def _lend(self, call: Call) -> None:
        if self._worker is None or not call.line.lend(lambda: self.interrupt(call, grace_s=LEFT_GRACE_S)):
            return
        if self._worker.lend(call.line):
            self._lent, self._is_asked_back = call, False
        else:
            call.line.take_back(b"")

    def _ask_back(self, worker: Worker) -> None:
        if not self._is_asked_back:
            self._is_asked_back = True
            worker.ask_back()

    def _take_back(self, data: bytes) -> None:
        call, self._lent, self.kill_at = self._lent, None, None
        if self._worker is not None:
            self._worker.page.is_stopped = False
        self._begin_next()
        if call is not None:
            call.line.take_back(data)


def failed(name: str, message: str, *, is_lost: bool = False) -> tuple[int, bytes]:
    """What a client is told of a call that its interpreter does not answer."""
    error = {"type": name, "message": message, "traceback": ""}
    return DONE, json.dumps({"value": None, "error": error, "is_lost": is_lost}).encode()

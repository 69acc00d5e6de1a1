"""One interpreter that keeps its state between calls, and the calls that wait for it."""

from __future__ import annotations

import fcntl
import json
import os
import selectors
import signal
import socket
import termios
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import vmfork_guest

from .kinds import DONE, FILES, MOST_ANSWER, RESULT, RUN, STARTED, STDERR, STDOUT
from .line import Line
from .made import find_made, look

if TYPE_CHECKING:
    from .languages import Language

_PIECE = 65_536


@dataclass(frozen=True)
class Asked:
    """What the host asks for. `env` is all that it says of the environment."""

    code: str
    language: str
    context: str
    restart: bool
    env: dict[str, str]
    made_in: str


class Call:
    """What one client asked for. It is open until it was answered."""

    def __init__(self, line: Line, asked: Asked, context: Context) -> None:
        self.line = line
        self.asked = asked
        self.context = context
        self.is_open = True
        self.before = look(asked.made_in)

    def answer(self, done: bytes) -> None:
        """The client has all of it."""
        self.is_open = False
        if self.asked.made_in:
            self.line.send(FILES, json.dumps(find_made(self.asked.made_in, self.before)).encode())
        self.line.send(DONE, done)


class Context:
    """An interpreter, from the first call on; another begins where it has ended."""

    def __init__(self, selector: selectors.BaseSelector, language: Language) -> None:
        self._selector = selector
        self._language = language
        self._worker: _Worker | None = None
        self._running: Call | None = None
        self._waiting: deque[Call] = deque()
        self._env: dict[str, str] = {}
        self._generation = ""
        self._is_started = False
        self.kill_at: float | None = None

    def ask(self, call: Call) -> None:
        """The call is answered when those before it were."""
        self._waiting.append(call)
        self._begin_next()

    def interrupt(self, call: Call, *, grace_s: float) -> None:
        """The call ends: at once when it waits, else as by Ctrl-C, and killed after `grace_s` seconds."""
        if call in self._waiting:
            self._waiting.remove(call)
            call.answer(_failed("KeyboardInterrupt", "another call was running"))
        elif call is self._running and self._worker is not None:
            self.hold(is_held=False)
            # One that comes before would be nobody's: it is sent as soon as the code runs.
            if grace_s and self._is_started:
                self._worker.interrupt()
            end = time.monotonic() + grace_s
            self.kill_at = end if self.kill_at is None else min(end, self.kill_at)

    def kill_late(self, now: float) -> None:
        """An interpreter that was interrupted and goes on is killed."""
        if self.kill_at is not None and now >= self.kill_at and self._worker is not None:
            self.kill_at = None
            self._worker.kill()

    def hold(self, *, is_held: bool) -> None:
        """Nothing is taken of the interpreter, which waits, while it is held."""
        if self._worker is not None:
            self._worker.hold(is_held=is_held)

    def _begin_next(self) -> None:
        while self._running is None and self._waiting:
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
                self._finish(_failed("NotInstalled", missing))
                return
            self._worker, self._env = _Worker(self._selector, self._language, self), {}
        asked = {
            "code": call.asked.code,
            "env": self._change(call.asked.env),
            "is_forked": now != self._generation,
        }
        self._generation = now
        self._worker.line.send(RUN, json.dumps(asked).encode())

    def _change(self, env: dict[str, str]) -> dict[str, str | None]:
        """What is others in the interpreter's environment than when it was last told; None for what is gone."""
        before, self._env = {**os.environ, **self._env}, env
        after = {**os.environ, **env}
        gone = dict.fromkeys(before.keys() - after.keys())
        return {**gone, **{key: value for key, value in after.items() if before.get(key) != value}}

    def on_output(self, kind: int, data: bytes) -> None:
        """What comes while nobody asked was written by something that a call left running, and is nobody's."""
        if self._running is not None:
            self._running.line.send(kind, data)
            if self._running.line.is_full:
                self.hold(is_held=True)

    def on_frame(self, kind: int, payload: bytes) -> None:
        """The interpreter gives a result, or is done."""
        assert self._worker is not None
        if kind == STARTED and not self._is_started:
            self._is_started = True
            if self.kill_at is not None:
                self._worker.interrupt()
        elif kind == RESULT:
            self.on_output(RESULT, payload)
        elif kind == DONE:
            self._worker.drain()
            self._finish(payload)
            self._begin_next()
        else:
            self._worker.kill()

    def on_end(self, how: str) -> None:
        """The interpreter has ended, and all it wrote was told."""
        self._worker = None
        if self._running is not None:
            self._finish(_failed("InterpreterEnded", how, is_lost=True))
        self._begin_next()

    def _finish(self, done: bytes) -> None:
        call, self._running, self.kill_at = self._running, None, None
        self._is_started = False
        if call is not None:
            call.answer(done)
        self.hold(is_held=False)


class _Worker:
    """One process, with a line to it, and pipes that it and what it starts write into."""

    def __init__(self, selector: selectors.BaseSelector, language: Language, context: Context) -> None:
        self._selector = selector
        self._context = context
        ours, theirs = socket.socketpair()
        pipes = [os.pipe(), os.pipe()]
        self._pid = os.fork()
        if self._pid == 0:
            try:
                language.serve(theirs, *(end for _, end in pipes))
            finally:
                os._exit(70)
        theirs.close()
        for _, end in pipes:
            os.close(end)
        self._outputs = {pipe: kind for (pipe, _), kind in zip(pipes, (STDOUT, STDERR))}
        for pipe in self._outputs:
            os.set_blocking(pipe, False)
        self._followed: set[int] = set()
        self._pidfd = os.pidfd_open(self._pid)
        selector.register(self._pidfd, selectors.EVENT_READ, self._on_end)
        self.line = Line(selector, ours, most=MOST_ANSWER, on_frame=context.on_frame, on_end=self.kill)
        self.hold(is_held=False)

    def hold(self, *, is_held: bool) -> None:
        """Whether what comes of it waits."""
        for pipe in tuple(self._outputs):
            if is_held and pipe in self._followed:
                self._selector.unregister(pipe)
                self._followed.discard(pipe)
            elif not is_held and pipe not in self._followed:
                self._selector.register(pipe, selectors.EVENT_READ, lambda _mask, pipe=pipe: self._pass_on(pipe))
                self._followed.add(pipe)
        if not self.line.is_closed:
            self.line.hold(is_held=is_held)

    def _pass_on(self, pipe: int, most: int = _PIECE) -> int:
        try:
            data = os.read(pipe, most)
        except BlockingIOError:
            return 0  # it was drained since the selector saw it
        if data:
            self._context.on_output(self._outputs[pipe], data)
        elif pipe in self._followed:
            self._selector.unregister(pipe)  # nobody can write any more
            self._followed.discard(pipe)
        return len(data)

    def drain(self) -> None:
        """All that was written until now was told; what a program that was left running goes on to write is not."""
        for pipe in self._outputs:
            left = _count_waiting(pipe)
            while left > 0 and (size := self._pass_on(pipe, min(left, _PIECE))):
                left -= size

    def interrupt(self) -> None:
        """As Ctrl-C, to it and what it has started."""
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        """It is about to end, with what it has started."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        # Before it has made its group, there is only itself.
        with suppress(ProcessLookupError):
            try:
                os.killpg(self._pid, number)
            except ProcessLookupError:
                os.kill(self._pid, number)

    def end(self) -> None:
        """It has ended, and nothing is told of it."""
        self.kill()
        self._reap()

    def _on_end(self, _mask: int) -> None:
        self.drain()
        how = _explain(self._reap())
        self._context.on_end(how)

    def _reap(self) -> int:
        _, status = os.waitpid(self._pid, 0)
        # What it has left in its group would go on without anyone who could end it.
        with suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        self._selector.unregister(self._pidfd)
        os.close(self._pidfd)
        self.hold(is_held=True)
        self.line.close()
        for pipe in self._outputs:
            os.close(pipe)
        return status


def _count_waiting(pipe: int) -> int:
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), "little")


def _explain(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"the interpreter was ended by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"the interpreter has exited with status {os.WEXITSTATUS(status)}"


def _failed(name: str, message: str, *, is_lost: bool = False) -> bytes:
    error = {"type": name, "message": message, "traceback": ""}
    return json.dumps({"value": None, "error": error, "is_lost": is_lost}).encode()

"""The process of an interpreter, as the server has it."""

from __future__ import annotations

import fcntl
import os
import select
import selectors
import signal
import socket
import termios
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from .kinds import LEND, MOST_ANSWER, RETURN, STDERR, STDOUT
from .line import HEAD, Line
from .page import Page

if TYPE_CHECKING:
    from .languages import Language
    from .selector import Selector

_PIECE = 65_536


class Follower(Protocol):
    """Who is told what an interpreter does."""

    def on_output(self, kind: int, data: bytes) -> None:
        """It, or what it has started, wrote that."""

    def on_frame(self, kind: int, payload: bytes) -> None:
        """It says that."""

    def on_end(self, how: str) -> None:
        """It has ended."""


class Worker:
    """One process, with a line to it, and pipes that it and what it starts write into."""

    def __init__(self, selector: Selector, language: Language, follower: Follower) -> None:
        self.page = Page()
        self._selector = selector
        self._follower = follower
        self._socket, theirs = socket.socketpair()
        pipes = [os.pipe(), os.pipe()]
        outputs = select.epoll()
        for pipe, _ in pipes:
            outputs.register(pipe, select.EPOLLIN)
        self._pid = os.fork()
        if self._pid == 0:
            try:
                language.serve(theirs, pipes[0][1], pipes[1][1], self.page, outputs)
            finally:
                os._exit(70)
        theirs.close()
        outputs.close()
        for _, end in pipes:
            os.close(end)
        self._outputs = {pipe: kind for (pipe, _), kind in zip(pipes, (STDOUT, STDERR))}
        for pipe in self._outputs:
            os.set_blocking(pipe, False)
        self._followed: set[int] = set()
        self._pidfd = os.pidfd_open(self._pid)
        selector.register(self._pidfd, selectors.EVENT_READ, self._on_end)
        self.line = Line(selector, self._socket, most=MOST_ANSWER, on_frame=follower.on_frame, on_end=self.kill)
        self.hold(is_held=False)

    def lend(self, line: Line) -> bool:
        """Whether it has the host's line now. Not when either has something to do first."""
        if self.line.is_closed or self.line.has_unsent:
            return False
        try:
            socket.send_fds(self._socket, [HEAD.pack(0, LEND)], [line.fileno()])
        except OSError:
            return False
        return True

    def ask_back(self) -> None:
        """The line comes back when its call is done."""
        self.line.send(RETURN)

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
        with self.page.passing():
            try:
                data = os.read(pipe, most)
            except BlockingIOError:
                return 0  # it was drained since the selector saw it
            if data:
                self._follower.on_output(self._outputs[pipe], data)
        if not data and pipe in self._followed:
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
        """As Ctrl-C, to it and what it has started, when a call runs; one that begins ends by itself."""
        self.page.is_stopped = True
        if self.page.is_running:
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
        self.hold(is_held=False)
        self.drain()
        # It may have answered, or given a line back, as its last act.
        self.line.read_rest()
        how = _explain(self._reap())
        self._follower.on_end(how)

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

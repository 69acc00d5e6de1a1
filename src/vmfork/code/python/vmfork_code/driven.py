"""Code in other languages: a program of its own is given one piece after the other, and says when each is done."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .control import Control, Request

_MOST_LINE = 32 << 20
_ASKED, _ANSWERED = 8, 9
# Pipes are made above those two, so that neither is in the other's place.
_ABOVE = 10

# `command` keeps a syntax error from ending a shell. What the code starts does not get the two pipes.
_SHELL = """
while read -r vmfork_code <&8; do
    command . "$vmfork_code" 8<&- 9>&-
    echo "$?" >&9
done
"""


class _Driven:
    """The program: it reads lines from descriptor 8, and answers by lines on descriptor 9."""

    def __init__(self, control: Control, argv: list[str]) -> None:
        self.control = control
        # An interrupt is for the program, and for what that has started.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        asked, self._asked = _make_pipe()
        answers, answered = _make_pipe()
        self._program = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            env=os.environ,
            pass_fds=(_ASKED, _ANSWERED),
            preexec_fn=lambda: _place(asked, answered),
        )
        os.close(asked)
        os.close(answered)
        self._answers = open(answers, "rb")

    def tell(self, line: str) -> None:
        """The program is asked. Where it has ended, `next_line` says so.

        Interrupted before, it is interrupted now, with what it has started: this process heeds no interrupt.
        """
        if self.control.is_stopped:
            os.killpg(0, signal.SIGINT)
        data = line.encode() + b"\n"
        try:
            while data:
                data = data[os.write(self._asked, data) :]
        except BrokenPipeError:
            pass

    def next_line(self) -> bytes:
        """What it answers. When it has ended, this process ends as it did."""
        line = self._answers.readline(_MOST_LINE)
        if not line.endswith(b"\n"):
            self._program.kill()
            _end_as(self._program.wait())
        return line


class Shell(_Driven):
    """A shell, which reads each piece of code from a file; the value is its exit status."""

    def __init__(self, control: Control, program: str) -> None:
        super().__init__(control, [program, "-c", _SHELL])
        self._has_generator = program == "bash"
        # Without a name: code cannot remove it, and it goes with this process.
        self._code = os.memfd_create("code")
        self._path = f"/proc/{os.getpid()}/fd/{self._code}"

    def run(self, asked: Request) -> None:
        """The code was run."""
        code, env, is_forked = asked
        lines = [_spell(key, value) for key, value in env.items() if key.isidentifier()]
        if is_forked and self._has_generator:
            # Its own generator would draw the same in every fork of the machine.
            lines.append(f"RANDOM={int.from_bytes(os.urandom(2), 'big')}")
        if lines:
            self._source("\n".join(lines))
        status = self._source(code)
        error = {"type": "ExitStatus", "message": status, "traceback": ""}
        self.control.send_done(value=status, error=None if status == "0" else error)

    def _source(self, code: str) -> str:
        os.ftruncate(self._code, 0)
        os.lseek(self._code, 0, os.SEEK_SET)
        with open(self._code, "w", encoding="utf-8", closefd=False) as file:
            file.write(code + "\n")
        self.tell(self._path)
        return self.next_line().decode("ascii", "replace").strip()


class Node(_Driven):
    """Node.js. Its generator, `Math.random`, cannot be renewed: forks of the machine begin with a new one.

    An interrupt ends it. Its own way to break a script off (`breakOnSigint`, 20.20) loses a signal that comes as the
    script ends, or is ended by it.
    """

    def __init__(self, control: Control) -> None:
        super().__init__(control, ["node", os.path.join(os.path.dirname(os.path.abspath(__file__)), "node.js")])

    def run(self, asked: Request) -> None:
        """The code was run."""
        code, env, is_forked = asked
        self.tell(json.dumps({"code": code, "env": env, "is_forked": is_forked}))
        while "done" not in (answer := json.loads(self.next_line())):
            self.control.send_result(answer["shown"])
        self.control.send_done(**answer["done"])


def _spell(key: str, value: str | None) -> str:
    return f"unset {key}" if value is None else f"export {key}={shlex.quote(value)}"


def _make_pipe() -> tuple[int, int]:
    first, second = os.pipe()
    placed = tuple(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _ABOVE) for fd in (first, second))
    os.close(first)
    os.close(second)
    return placed[0], placed[1]


def _place(asked: int, answered: int) -> None:
    os.dup2(asked, _ASKED)
    os.dup2(answered, _ANSWERED)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _end_as(status: int) -> None:
    """This process ends as one of that status did."""
    if status < 0:
        if -status not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status & 0xFF)

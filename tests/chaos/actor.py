"""A program: one operation, and what befalls somebody in it. `python -m tests.chaos.actor '{"life": "fork", ...}'`.

It prints a line of JSON for each thing that can be known: `struck` when somebody was; else `steps`, each with those who
took part at that moment; and how it ended: `error`, or `well`. Its exit status is 0 unless a bug, or an error without a
hint, came out.
"""

from __future__ import annotations

import asyncio
import errno
import faulthandler
import json
import os
import resource
import signal
import sys
import traceback
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.chaos.lives import LIVES, Stage
from tests.chaos.participants import CLOCK, GUEST, HOST, LIBRARY, SERVER, find, present, strike
from tests.refusals import touching
from tests.stepped_clock import step_own
from vmfork.aio import DeadlineExceeded, InternalError, VMForkError
from vmfork.border.failures import translating
from vmfork.cli.main import main as command

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from vmfork.progress import Progress


@dataclass(frozen=True)
class Asked:
    """One run. The `nth` step called `step` is where `participant` gets the signal; without a step nobody does.

    The host as participant refuses that step with the error number that is called `signal`, the clock is that many
    seconds off from then on.

    Where there is no such participant at that step, it gets the signal at the first step at which there is one.
    `descriptors`: no more are allowed from the first step on.
    """

    life: str
    template: str
    step: str = ""
    nth: int = 1
    participant: str = LIBRARY
    signal: str = "SIGKILL"
    server: int = 0
    seed: int = 0
    descriptors: int = 0
    options: dict[str, str] | None = None


def tell(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


class Steps:
    """Counts the steps, and strikes at the one that was asked for."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._seen: Counter[str] = Counter()
        self._due = False
        self._done = not asked.step or asked.participant == GUEST
        self.met: list[tuple[str, list[str]]] = []

    def reach(self, name: str) -> None:
        asked = self._asked
        if not asked.step:
            self.met.append((name, present(self._roots())))
        self._seen[name] += 1
        self._due = self._due or (name == asked.step and self._seen[name] >= asked.nth)
        if self._due and not self._done:
            self._strike(name)

    def _strike(self, name: str) -> None:
        asked = self._asked
        if asked.participant == HOST:
            self._done = True
            tell(struck=name)
            number = getattr(errno, asked.signal)
            raise OSError(number, os.strerror(number))
        if asked.participant == CLOCK:
            self._done = True
            tell(struck=name)
            step_own(int(asked.signal))
            return
        if asked.participant == LIBRARY:
            tell(struck=name)
        if strike(self._find(), signal.Signals[asked.signal]):
            self._done = True
            tell(struck=name)

    def _find(self) -> list[int]:
        participant = self._asked.participant
        if participant == LIBRARY:
            return [os.getpid()]
        if participant == SERVER:
            return [self._asked.server]
        return find(participant, self._roots())

    def _roots(self) -> list[int]:
        """Whose descendants take part. A broker is nobody's child, and so that of the subreaper above us."""
        roots = [os.getpid(), *([self._asked.server] if self._asked.server else [])]
        return [os.getppid()] if self._asked.life in ("start", "connect", "left") else roots

    def touch(self, what: str, frame: FrameType, _args: tuple[Any, ...]) -> None:
        self.reach(f"{what} in {_subject(frame)}")

    def progress(self, event: Progress) -> None:
        if self._asked.participant != HOST:  # it refuses no progress
            self.reach(f"progress: {event.task}: {event.step}")

    @contextmanager
    def counted(self) -> Iterator[None]:
        if self._asked.descriptors:
            _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (self._asked.descriptors, most))
        with touching(self.touch):
            yield


def _subject(frame: FrameType) -> str:
    """The function that has to do with it: the nearest that is not in `host`, which only does as it is told."""
    here: FrameType | None = frame
    while here is not None:
        module = here.f_globals.get("__name__", "")
        if module.startswith("vmfork.") and not module.startswith("vmfork.host."):
            return f"{module.removeprefix('vmfork.')}:{here.f_code.co_qualname}"
        here = here.f_back
    return f"{frame.f_globals['__name__'].removeprefix('vmfork.')}:{frame.f_code.co_qualname}"


async def _live(asked: Asked, steps: Steps) -> None:
    stage = Stage(
        asked.template,
        steps=steps.counted,
        progress=steps.progress,
        crash=asked.participant == GUEST,
        seed=asked.seed,
        options=asked.options or {},
    )
    with translating():  # where a life asks a mechanism itself, it does so behind the border, as the API
        await LIVES[asked.life](stage)


def _serve(steps: Steps) -> int:
    with steps.counted():
        return command(["factory", "init", "--json"])


def run(asked: Asked) -> int:
    """The operation has ended, well or in an error that was foreseen; else 1."""
    steps = Steps(asked)
    try:
        if asked.life == "serve":
            status = _serve(steps)
            tell(status=status)
        else:
            asyncio.run(_live(asked, steps))
    except InternalError:
        traceback.print_exc()
        return 1
    except VMForkError as error:
        tell(error=type(error).__name__, message=str(error).splitlines()[0], hint=error.hint)
        if not error.hint and not isinstance(
            error, DeadlineExceeded
        ):  # of the life's own limit nothing more is to be said
            traceback.print_exc()
            return 1
    else:
        tell(well=True)
    if not asked.step:
        tell(steps=steps.met)
    return 0


if __name__ == "__main__":
    faulthandler.register(signal.SIGUSR1)
    sys.exit(run(Asked(**json.loads(sys.argv[1]))))

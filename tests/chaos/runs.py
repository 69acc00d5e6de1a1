"""One run: an actor does its work, somebody is struck, and what is left is looked at."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from tests.chaos import aftermath
from tests.chaos.actor import Asked
from tests.chaos.participants import CLOCK, NAMES
from tests.chaos.troubles import TROUBLES, Troubled
from tests.refusals import NUMBERS
from tests.stepped_clock import HOUR_S, SteppedClock

ROOT = Path(__file__).parents[2]
# The longest that a life may take, of which each wait has a limit; beyond that it hangs.
LIMIT_S = 240.0


@dataclass(frozen=True)
class Result:
    """How a run ended: `killed` is the actor itself, `unmet` a run in which nobody was struck.

    `said` is the error that came out, `step` where the strike fell, `wrong` what must not be.
    """

    life: str
    participant: str
    deed: str
    outcome: str
    step: str
    said: str
    seconds: float
    wrong: tuple[str, ...] = ()


@dataclass
class Told:
    """What an actor said, and how it ended."""

    lines: list[dict[str, Any]] = field(default_factory=list)
    status: int = 0
    log: str = ""
    hung: bool = False

    out: str = ""

    def get(self, key: str) -> Any:
        return next((line[key] for line in self.lines if key in line), None)


class Instance:
    """The actors' environment, the template that they fork, and a clock that may jump in one of them."""

    def __init__(self, template: str, dying: str, environ: Mapping[str, str], clock: SteppedClock) -> None:
        self.template, self.dying, self.environ, self.clock = template, dying, environ, clock

    def act(self, asked: Asked, *, troubled: Troubled | None = None, delay_s: float = 0.0) -> Told:
        """The actor has ended. One that serves is told to end, `delay_s` after it began to serve."""
        troubled = troubled or Troubled("")
        environ = {**self.environ, **troubled.environ}
        if asked.participant == CLOCK:
            self.clock.step_to(0)
            environ |= self.clock.environ
        argv = [*troubled.prefix, sys.executable, "-m", "tests.chaos.actor", json.dumps(vars(asked))]
        told = Told()
        with tempfile.TemporaryFile() as log:
            with subprocess.Popen(
                argv, cwd=ROOT, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True
            ) as actor, _limited(actor, told):  # fmt: skip
                assert actor.stdout is not None
                for line in actor.stdout:
                    told.out += line
                    if '"serving"' in line:
                        time.sleep(delay_s)
                        actor.send_signal(signal.SIGTERM)
                    elif line.startswith('{"'):
                        told.lines.append(json.loads(line))
            log.seek(0)
            told.log = log.read().decode(errors="replace")
        told.status = actor.returncode
        return told


@contextmanager
def _limited(actor: subprocess.Popen[str], told: Told) -> Iterator[None]:
    """An actor that hangs says where, and is killed."""

    def end() -> None:
        told.hung = True
        actor.send_signal(signal.SIGUSR1)
        time.sleep(0.5)
        actor.kill()

    timer = threading.Timer(LIMIT_S, end)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


# The deed of a host that refuses a step, with a number that is drawn.
REFUSED = "refusal"
# That of a clock: it jumps by an hour, either way.
STEPPED = "step"
# A step's name, and who of NAMES took part at that moment.
Step = tuple[str, Sequence[str]]


def count_steps(instance: Instance, life: str, options: Mapping[str, str]) -> list[Step]:
    """The steps of a life in which nobody is struck, in their order."""
    if life == "image":  # the first of all builds does more
        instance.act(Asked(life, instance.template, options=dict(options)))
    with _server(instance, life):
        told = instance.act(Asked(life, instance.template, options=dict(options)), delay_s=1.0)
    assert (told.status, told.get("error")) == (0, None), (life, told)
    steps: list[Step] = told.get("steps")
    return steps


def strike(
    instance: Instance, life: str, participant: str, deed: str, steps: Sequence[Step], *, seed: int,
    options: Mapping[str, str],
) -> Result:  # fmt: skip
    """A life in which `participant` gets the signal `deed` at a step, at one of the times that it is reached.

    Each name is as likely as any other, of those at which the participant is there.
    """
    random = Random(seed)
    met = [each for each in steps if participant in each[1] or participant not in NAMES]
    step = random.choice(sorted({name for name, _ in met or steps}))
    template = instance.dying if participant == "guest" and life in ("fork", "adopt") else instance.template
    nth = random.choice([at for at, each in enumerate(_named(steps, step), 1) if each in met] or [1])
    sign = {REFUSED: errno.errorcode[random.choice(NUMBERS)], STEPPED: str(random.choice((HOUR_S, -HOUR_S)))}
    asked = Asked(life, template, step, nth, participant, sign.get(deed, deed), seed=seed, options=dict(options))
    before = _Before()
    with _server(instance, life) as server:
        told = instance.act(replace(asked, server=server), delay_s=random.uniform(0, 2))
    return _judge(instance, asked, told, before, participant, deed)


def _named(steps: Sequence[Step], name: str) -> list[Step]:
    return [each for each in steps if each[0] == name]


def trouble(instance: Instance, life: str, name: str, *, seed: int, options: Mapping[str, str]) -> Result | None:
    """A life on a host that has that trouble, and has it no more afterwards; `None` where this host cannot have it."""
    before = _Before()
    with TROUBLES[name][0](Random(seed)) as troubled:
        if troubled is None:
            return None
        asked = Asked(life, instance.template, seed=seed, descriptors=troubled.descriptors, options=dict(options))
        told = instance.act(asked, troubled=troubled)
    return replace(_judge(instance, asked, told, before, "host", name), step=troubled.amount)


class _Before:
    """When a run began, and what was there."""

    def __init__(self) -> None:
        self.at = time.monotonic()
        self.generation = aftermath.generation_of(aftermath.OLD)


def _judge(instance: Instance, asked: Asked, told: Told, before: _Before, participant: str, deed: str) -> Result:
    wrong = aftermath.look(asked.life, before.generation, instance.template)
    if told.hung:
        wrong.append(f"it did not end within {LIMIT_S:g} s")
    elif told.status not in (0, -signal.SIGKILL) or "bug in vmfork" in told.out + told.log:
        wrong.append(f"exit status {told.status}: {told.out[-1000:]}")
    if wrong:
        wrong.append(told.log[-4000:])
    struck = told.get("struck")
    return Result(
        asked.life,
        participant,
        deed,
        "failed" if wrong else _outcome(told, struck is not None or participant == "guest" or deed in TROUBLES),
        struck or asked.step,
        f"{told.get('error')}: {told.get('message')}" if told.get("error") else "",
        round(time.monotonic() - before.at, 1),
        tuple(wrong),
    )


def _outcome(told: Told, met: bool) -> str:
    if told.status == -signal.SIGKILL:
        return "killed"
    return "unmet" if not met else "error" if told.get("error") or told.get("status") else "well"


@contextmanager
def _server(instance: Instance, life: str) -> Iterator[int]:
    """The pid of a server with one machine in its pool, for a life that takes from it; else 0."""
    if life != "take":
        yield 0
        return
    with ExitStack() as stack:
        server = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "vmfork", "factory", "init", "--json"],
                env=instance.environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        )
        stack.callback(server.wait)
        stack.callback(server.terminate)
        assert server.stdout is not None
        assert any('"serving"' in line for line in server.stdout), "the server did not begin to serve"
        yield server.pid


def become_subreaper() -> None:
    """Orphans of our descendants become our children, so that none can be overlooked."""
    import ctypes  # noqa: PLC0415

    assert ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER


def environ_of(template: str) -> dict[str, str]:
    """Ours, with a factory that forks that template and keeps a pool of one."""
    return {
        **os.environ,
        "VMFORK_FACTORY_TEMPLATE": "true",
        "VMFORK_FACTORY_TEMPLATE_NAME": template,
        "VMFORK_FACTORY_CACHE": "1",
    }

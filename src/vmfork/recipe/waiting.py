"""A condition is waited for in a machine, within a time limit."""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING

from vmfork.errors import ConfigError, DeadlineExceeded
from vmfork.machine.programs import run_program
from vmfork.machine.ways import find_program_env
from vmfork.network.listening import find_listening
from vmfork.recipe.log import LogSearch
from vmfork.recipe.step import NOTHING_STARTED

if TYPE_CHECKING:
    from vmfork.machine.running import Running
    from vmfork.recipe.background import Background
    from vmfork.recipe.step import Ready
    from vmfork.recipe.surroundings import Surroundings

# A condition is looked at this often: nothing tells when an arbitrary one becomes true.
_PAUSE_S = 0.1


async def wait_ready(running: Running, step: Ready, surroundings: Surroundings, program: Background | None) -> None:
    """The condition is met. `program` is the one that was started last.

    Raises `DeadlineExceeded`, with what the condition's command or the program wrote last, and `GuestError` when the
    program has ended.
    """
    if step.condition == "log" and program is None:
        raise ConfigError("ready.log", step.value, NOTHING_STARTED, hint='give "start"')
    waiting = _Waiting(running, step, surroundings, program)
    end = time.monotonic() + step.timeout_s
    while (left := end - time.monotonic()) > 0:
        if await waiting.is_met(left):
            return
        if program is not None:
            await program.check_alive()
        await asyncio.sleep(min(_PAUSE_S, left))
    raise await waiting.fail()


class _Waiting:
    def __init__(self, running: Running, step: Ready, surroundings: Surroundings, program: Background | None) -> None:
        self._running = running
        self._step = step
        self._surroundings = surroundings
        self._program = program
        self._last = b"", b""
        self._search = LogSearch(re.compile(step.value, re.MULTILINE)) if step.condition == "log" else None

    async def is_met(self, left_s: float) -> bool:
        """Whether the condition is met now."""
        match self._step.condition:
            case "command":
                return await self._succeeds(left_s)
            case "port":
                return int(self._step.value) in await find_listening(self._running.agent)
            case "file":
                return await self._running.agent.exists(self._step.value)
            case "log":
                assert self._program is not None
                assert self._search is not None
                return await self._program.find_in_log(self._search, limit_s=left_s)

    async def _succeeds(self, left_s: float) -> bool:
        command = self._surroundings.command(self._step.value, find_program_env(self._running))
        try:
            result = await run_program(self._running, command, timeout_s=left_s)
        except DeadlineExceeded as error:
            if error.stdout or error.stderr:  # the last attempt may have had no time to write anything
                self._last = error.stdout, error.stderr
            return False
        self._last = result.stdout_bytes, result.stderr_bytes
        return result.ok

    async def fail(self) -> DeadlineExceeded:
        """The error that tells what was waited for, and what was written last."""
        step, (stdout, stderr) = self._step, self._last
        what = {"command": "to succeed", "port": "to be listened on", "file": "to be there", "log": "to be written"}
        shown = f"port {step.value}" if step.condition == "port" else repr(step.value)
        said = [("its last standard output", stdout), ("its last standard error", stderr)]
        if self._program is not None:
            said.append(("the started program's output", (await self._program.read_log_end()).encode()))
        detail = "\n".join(f"{name}:\n{text.decode(errors='replace').rstrip()}" for name, text in said if text)
        task = f"waiting for {shown} {what[step.condition]}"
        return DeadlineExceeded(task, step.timeout_s, stdout=stdout, stderr=stderr, detail=detail)

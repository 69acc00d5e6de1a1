"""A program that is run to its end in a running machine."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vmfork.machine.result import ExecResult
from vmfork.machine.trace import trace_program
from vmfork.wire.given import MOST_BYTES

if TYPE_CHECKING:
    from vmfork.machine.running import Running
    from vmfork.wire.command import Command


async def run_program(
    running: Running,
    command: Command,
    *,
    input: bytes | None = None,  # noqa: A002 - the name subprocess gave it
    max_output: int | None = MOST_BYTES,
    timeout_s: float | None = None,
) -> ExecResult:
    """The program has ended; what it wrote and its exit status, whatever that is.

    Raises `ExecError` (127, 126) when it cannot be started. After `timeout_s` seconds it is killed with all that it
    started, and `DeadlineExceeded` carries what it wrote so far; so does `LimitExceeded` when that is more than
    `max_output` bytes. `None` is no limit.
    """
    begun = time.perf_counter()
    agent = running.agent
    status, stdout, stderr = await agent.exec(command, input=input, max_output=max_output, timeout_s=timeout_s)
    trace_program(command.argv[0], time.perf_counter() - begun, status.exit_code)
    return ExecResult(
        argv=tuple(command.argv),
        exit_code=status.exit_code,
        duration_s=status.duration_s,
        stdout_bytes=stdout,
        stderr_bytes=stderr,
    )

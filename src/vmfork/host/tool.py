"""Programs of the host: where they are, and those that are run as their user would run them."""

from __future__ import annotations

import asyncio
import os
import shutil
from typing import TYPE_CHECKING

from vmfork.errors import HostError
from vmfork.host.session import kill_session

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_PIECE = 8192


def find_tool(program: str, use: str, *, hint: str, path: str | None = None) -> str:
    """Where it is, on PATH or on `path`; `use` says what it is for. Raises `HostError` when it is not installed."""
    found = shutil.which(program, path=path)
    if found is None:
        raise HostError(f"the program {program} was not found, {use}", hint=hint)
    return found


async def run_tool(argv: Sequence[str], *, folder: Path, log: bytearray, log_bytes: int = _PIECE) -> int:
    """It has ended, and so has all that it started; its exit status. `log` has the last bytes that it wrote.

    It is run as its user would run it, with all of our environment: credentials and settings of tools lie there, and
    strangers' files may name any variable of it. Raises `HostError` when it cannot be started. On cancel nothing of it
    is left, and `log` has what it wrote so far.
    """
    setpriv = shutil.which("setpriv")  # should we be killed outright, it ends with us
    try:
        process = await asyncio.create_subprocess_exec(
            *([setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []),
            *argv,
            cwd=folder,
            env=dict(os.environ),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise HostError(f"cannot run {argv[0]}: {error.strerror}") from error
    assert process.stdout is not None
    try:
        while more := await process.stdout.read(_PIECE):
            log += more
            del log[:-log_bytes]
        return await process.wait()
    finally:
        await kill_session(process.pid)
        await process.wait()

"""A program that tells of itself and ends: run in an environment of its own, and ended where it does not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from vmfork.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

T = TypeVar("T")


async def ask_program(
    path: Path,
    *arguments: str,
    talk: Callable[[asyncio.subprocess.Process], Awaitable[T]],
    env: Mapping[str, str],
    limit_s: float,
    has_input: bool = False,
    errors_too: bool = False,
    hint: str = "",
) -> T:
    """What `talk` gives, which sees the program to its end; `env` is all of its environment.

    Raises `HostError` when it cannot be run, and `TimeoutError` after `limit_s` seconds. It has ended on every path.
    """
    pipe, nothing = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    try:
        child = await asyncio.create_subprocess_exec(
            path,
            *arguments,
            stdin=pipe if has_input else nothing,
            stdout=pipe,
            stderr=asyncio.subprocess.STDOUT if errors_too else nothing,
            env=env,
        )
    except OSError as error:
        raise HostError(f"cannot run {path}: {error.strerror}", hint=hint) from error
    try:
        return await asyncio.wait_for(talk(child), limit_s)
    except BaseException:
        if child.returncode is None:
            child.kill()
        await child.wait()
        raise


async def read_output(child: asyncio.subprocess.Process) -> str:
    """All that it prints."""
    output, _ = await child.communicate()
    return output.decode(errors="replace")

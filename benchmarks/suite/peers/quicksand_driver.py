"""Runs quicksand, in a Python of its own, for whoever writes to its standard input; speaks one JSON line for each line.

`fresh`: a new sandbox, its first program, its end: seconds to the program's result.
`revert`: one sandbox (made at the first time) goes back to its checkpoint and runs a program: seconds.
The end of input ends it, and all it started. Nothing of vmfork may be imported here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from typing import Any

# No package is fetched behind the measurement's back.
os.environ["QUICKSAND_AUTO_INSTALL"] = "0"


class Driver:
    """Owner of at most one sandbox with a checkpoint."""

    def __init__(self, memory_mib: int) -> None:
        self._memory = f"{memory_mib}M"
        self._kept: Any = None

    async def fresh(self) -> float:
        begun = time.perf_counter()
        sandbox = await self._start()
        try:
            await sandbox.execute("true")
            return time.perf_counter() - begun
        finally:
            await sandbox.stop()

    async def revert(self) -> float:
        if self._kept is None:
            self._kept = await self._start()
            await self._kept.execute("true")
            await self._kept.checkpoint("bench")
        begun = time.perf_counter()
        await self._kept.revert("bench")
        await self._kept.execute("true")
        return time.perf_counter() - begun

    async def aclose(self) -> None:
        if self._kept is not None:
            await self._kept.stop()

    async def _start(self) -> Any:
        from quicksand import Sandbox  # noqa: PLC0415 - its import is no part of a machine's start

        sandbox = Sandbox(image="alpine", accel=None, memory=self._memory, cpus=1)
        await sandbox.start()
        return sandbox


async def main(memory_mib: int) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what quicksand prints is not an answer
    import quicksand  # noqa: F401, PLC0415

    driver = Driver(memory_mib)
    async with contextlib.aclosing(driver):
        while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
            try:
                told: dict[str, Any] = {"seconds": await getattr(driver, line)()}
            except Exception as error:  # noqa: BLE001 - told to whoever asked
                told = {"error": f"{type(error).__name__}: {error}"}
            answers.write(json.dumps(told) + "\n")
            answers.flush()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))

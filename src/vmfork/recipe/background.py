"""A program that a recipe starts and that runs on: in a session of its own, its output in a file of the guest.

```
/run/vmfork-start/N/    a folder for each, in the order they were started; the user's who runs it
    log                 what it writes
    pid                 of the shell that becomes it
```
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vmfork.errors import ConfigError, ExecError, GuestError, GuestFileError
from vmfork.machine.programs import run_program
from vmfork.wire.code import ErrorCode
from vmfork.wire.command import Command

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmfork.machine.running import Running
    from vmfork.recipe.log import LogSearch
    from vmfork.recipe.step import Start
    from vmfork.recipe.surroundings import Surroundings

FOLDER = "/run/vmfork-start"
_LIMIT_S = 60.0
_PIECE_BYTES = 1024 * 1024
_END_BYTES = 4096
_MOST_PID_BYTES = 32
# $0 is the folder, $1 the line. The shell is replaced by the line's own, whose pid it told.
_BEGIN = 'echo $$ > "$0/pid"; exec /bin/sh -c "$1" > "$0/log" 2>&1 < /dev/null'


class Background:
    """A program that was started."""

    def __init__(self, running: Running, number: int, step: Start) -> None:
        self._running = running
        self._step = step
        self._folder = f"{FOLDER}/{number}"
        self._log = f"{self._folder}/log"

    async def begin(self, surroundings: Surroundings, env: Mapping[str, str], *, owner: str) -> None:
        """It was started, by `owner` (empty: root). Raises `GuestError` when it cannot be, or there is no `setsid`."""
        agent = self._running.agent
        await agent.make_dir(self._folder, parents=True)
        if owner:
            await agent.change(self._folder, user=owner)
        # It forks, for the agent's programs lead their groups; busybox's has no option to say so.
        argv = ["setsid", "/bin/sh", "-c", _BEGIN, self._folder, self._step.line]
        command = Command(argv, env={**env, **surroundings.env}, cwd=surroundings.cwd, user=surroundings.user)
        try:
            (await run_program(self._running, command, timeout_s=_LIMIT_S)).check()
        except ExecError as error:
            if error.exit_code != 127:
                raise
            hint = 'put {packages = ["util-linux"]} before all other steps, or take a container image that has it'
            raise ConfigError("start", self._step.line, "the image has no setsid", hint=hint) from error

    async def find_in_log(self, search: LogSearch, *, limit_s: float) -> bool:
        """Whether `search`, which goes on from where it came to, finds its pattern in what the program wrote.

        After `limit_s` seconds the rest is left to a later call.
        """
        until = time.monotonic() + limit_s
        while True:
            data = await self._read_log(search.offset, _PIECE_BYTES)
            is_full = len(data) == _PIECE_BYTES
            if search.find(data, goes_on=is_full):
                return True
            if not is_full or time.monotonic() >= until:
                return False

    async def read_log_end(self) -> str:
        """What it wrote last, at most 4 KiB."""
        try:
            size = (await self._running.agent.stat(self._log)).size
        except GuestFileError as error:
            if error.reason == ErrorCode.NOT_FOUND:
                return ""
            raise
        return (await self._read_log(max(size - _END_BYTES, 0), _END_BYTES)).decode(errors="replace")

    async def _read_log(self, offset: int, length: int) -> bytes:
        """What there is of that part; nothing where there is no log yet."""
        try:
            return await self._running.agent.read_file(self._log, offset=offset, length=length)
        except GuestFileError as error:
            if error.reason == ErrorCode.NOT_FOUND:
                return b""
            raise

    async def check_alive(self) -> None:
        """Raises `GuestError`, with what it wrote, when the program has ended."""
        agent = self._running.agent
        try:
            pid = (await agent.read_file(f"{self._folder}/pid", length=_MOST_PID_BYTES)).decode().strip()
        except GuestFileError:
            return  # its shell has not come to that yet
        if not pid.isdecimal():
            return
        if not await agent.exists(f"/proc/{pid}"):
            said = (await self.read_log_end()).rstrip()
            raise GuestError(f"the program {self._step.line!r} has ended", hint=_hint(said))


def _hint(said: str) -> str:
    return f"it wrote:\n{said[-2000:]}" if said else "it wrote nothing"

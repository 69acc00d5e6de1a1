"""A program that a recipe starts and that runs on: in a session of its own, its output in a file of the guest.

```
/run/vmfork-start/N/    a folder for each, in the order they were started; the user's who runs it
    log                 what it writes
    pid                 of the shell that becomes it
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.errors import ConfigError, ExecError, GuestError, GuestFileError
from vmfork.machine.programs import run_program
from vmfork.wire.code import ErrorCode
from vmfork.wire.command import Command

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmfork.machine.running import Running
    from vmfork.recipe.step import Start
    from vmfork.recipe.surroundings import Surroundings

FOLDER = "/run/vmfork-start"
_LIMIT_S = 60.0
_MOST_LOG_BYTES = 1024 * 1024
_MOST_PID_BYTES = 32
# $0 is the folder, $1 the line. The shell is replaced by the line's own, whose pid it told.
_BEGIN = 'echo $$ > "$0/pid"; exec /bin/sh -c "$1" > "$0/log" 2>&1 < /dev/null'


class Background:
    """A program that was started."""

    def __init__(self, running: Running, number: int, step: Start) -> None:
        self._running = running
        self._step = step
        self._folder = f"{FOLDER}/{number}"

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

    async def read_log(self) -> str:
        """What it wrote, the first MiB at most."""
        try:
            data = await self._running.agent.read_file(f"{self._folder}/log", length=_MOST_LOG_BYTES)
        except GuestFileError as error:
            if error.reason == ErrorCode.NOT_FOUND:
                return ""
            raise
        return data.decode(errors="replace")

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
            said = (await self.read_log()).rstrip()
            raise GuestError(f"the program {self._step.line!r} has ended", hint=_hint(said))


def _hint(said: str) -> str:
    return f"it wrote:\n{said[-2000:]}" if said else "it wrote nothing"

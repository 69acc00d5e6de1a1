"""A recipe's steps, done in a machine one after the other."""

from __future__ import annotations

import os
import shutil
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from vmfork.code.call import run_code
from vmfork.code.source import find_code
from vmfork.errors import ConfigError, GuestFileError
from vmfork.host.packing import base_name
from vmfork.host.thread import in_thread
from vmfork.machine.of_image import find_image_user
from vmfork.machine.programs import run_program
from vmfork.machine.ways import find_program_env, set_network
from vmfork.recipe.background import Background
from vmfork.recipe.pins import check_pinned, digest_copied
from vmfork.recipe.step import Copy, Env, Hooks, Packages, Pip, Ready, Run, Start, Step, User, Workdir
from vmfork.recipe.waiting import wait_ready
from vmfork.recipe.wheels import ask_python, fetch_wheels, install_wheels
from vmfork.wire.code import ErrorCode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from pathlib import Path

    from vmfork.agent.client import AgentClient
    from vmfork.machine.running import Running
    from vmfork.network.policy import NetworkPolicy
    from vmfork.recipe.context import Context
    from vmfork.recipe.surroundings import Surroundings

_WHEELS = "wheels"
_ASK_LIMIT_S = 60.0
_SECRET_MODE = 0o600
_HOOK_MODE = 0o755


class Work:
    """Does steps in a machine, which stays its owner's. `surroundings` are those of the next step.

    `behind` are the steps that were done in it already. `pins` are the digests of those and of all that are to come
    (recipe/pins.py): what a step reads of this host is what they say, or it fails. Without them that is not looked at.
    """

    def __init__(
        self,
        running: Running,
        context: Context,
        surroundings: Surroundings,
        *,
        behind: Sequence[Step] = (),
        pins: Sequence[str] = (),
    ) -> None:
        self._pins = pins
        self._done = len(behind)
        self._running = running
        self._context = context
        self.surroundings = surroundings.after_all(behind)
        starts = [step for step in behind if isinstance(step, Start)]
        self._started = len(starts)
        self._program = Background(running, self._started, starts[-1]) if starts else None

    async def do(self, step: Step) -> None:
        """The step is done. Raises what the step does; what it was given for its time alone is taken back even so."""
        match step:
            case Packages():
                pass  # the image that was booted has them
            case Pip():
                await self._install(step)
            case Copy():
                await self._copy(step)
            case Hooks():
                await self._place_hooks(step)
            case Run():
                await self._run(step)
            case Workdir():
                await self._running.agent.make_dir(step.path, parents=True)
            case Start():
                await self._start(step)
            case Ready():
                async with self._reaching(step.network):
                    await wait_ready(self._running, step, self.surroundings, self._program)
            case Env() | User():
                pass
        self._done += 1
        if self._pins and isinstance(step, (Copy, Hooks, Pip)):
            await in_thread(lambda _: check_pinned(step, self._context, self._pins[: self._done]))
        self.surroundings = self.surroundings.after(step)

    async def _run(self, step: Run) -> None:
        secrets = _find_variables(step.secrets)
        async with self._reaching(step.network), self._holding(step.secret_files):
            # Below a line such as `#!python` it is code for an interpreter that stays.
            if (code := find_code(step.line)) is not None:
                (await run_code(self._running, code, timeout_s=step.timeout_s)).check()
                return
            command = self.surroundings.command(step.line, find_program_env(self._running), secrets=secrets)
            (await run_program(self._running, command, timeout_s=step.timeout_s)).check()

    async def _start(self, step: Start) -> None:
        self._started += 1
        self._program = Background(self._running, self._started, step)
        owner = await self._find_owner()
        await self._program.begin(self.surroundings, find_program_env(self._running), owner=owner)

    async def _find_owner(self) -> str:
        """Whom the programs of a step are; empty: root."""
        return self.surroundings.user or await find_image_user(self._running, timeout_s=_ASK_LIMIT_S)

    async def _copy(self, step: Copy) -> None:
        # With pins they say what it was, and `do` looks whether it still is.
        before = None if self._pins else await in_thread(lambda _: digest_copied(step, self._context))
        for source in step.sources:
            packing, size = self._context.pack(source, field="copy")
            path = self._place(step, source)
            await self._running.agent.put(packing, path, parents=True, size=size, timeout_s=step.timeout_s)
        if before is not None and await in_thread(lambda _: digest_copied(step, self._context)) != before:
            hint = "build again when nothing writes there"
            raise ConfigError("copy", [*step.sources], "it changed while it was copied", hint=hint)

    async def _place_hooks(self, step: Hooks) -> None:
        for source, path in step.placed:
            content = self._context.read_file(source, field="hooks")
            await self._running.agent.write_file(path, content, mode=_HOOK_MODE, parents=True)

    def _place(self, step: Copy, source: str) -> str:
        """Where the source goes: a file into the target, where that is a folder."""
        if (self._context.folder / source).is_dir() or not (step.target.endswith("/") or len(step.sources) > 1):
            return step.target
        return f"{step.target.rstrip('/')}/{base_name(source)}"

    async def _install(self, step: Pip) -> None:
        python = await ask_python(self._running)
        folder = self._running.folder.path / _WHEELS  # is swept with the machine
        folder.mkdir(mode=0o700)
        try:
            await fetch_wheels(step, python, self._context, folder)
            await install_wheels(self._running, folder, timeout_s=step.timeout_s)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @asynccontextmanager
    async def _reaching(self, policy: NetworkPolicy) -> AsyncIterator[None]:
        """Programs of the block reach what the policy says, and nothing afterwards."""
        await set_network(self._running, policy)
        try:
            yield
        finally:
            if self._running.agent.lost is None:
                await set_network(self._running, "none")

    @asynccontextmanager
    async def _holding(self, secrets: Mapping[str, str]) -> AsyncIterator[None]:
        """The guest has the secret files in the block, the owner's alone, and no more afterwards."""
        agent, placed = self._running.agent, []
        user = await self._find_owner() if secrets else ""
        contents = {path: _read_secret(self._context.folder, name) for path, name in secrets.items()}
        try:
            for path, content in contents.items():
                try:
                    await agent.write_file(path, content, mode=_SECRET_MODE, parents=True, exclusive=True)
                except GuestFileError as error:
                    if error.reason == ErrorCode.EXISTS:
                        raise ConfigError("secret_files", path, f"the machine has a file {path} already") from error
                    raise
                placed.append(path)
                if user:
                    await agent.change(path, user=user)
            yield
        finally:
            for path in placed:
                if agent.lost is None:
                    await _forget(agent, path)


async def _forget(agent: AgentClient, path: str) -> None:
    """The file is gone; the program that it was for may have removed it itself."""
    try:
        await agent.remove(path)
    except GuestFileError as error:
        if error.reason != ErrorCode.NOT_FOUND:
            raise


def _find_variables(names: Sequence[str]) -> dict[str, str]:
    """These variables of our environment. Raises `ConfigError` for the first that is not set."""
    missing = next((name for name in names if name not in os.environ), None)
    if missing is not None:
        raise ConfigError(
            "secrets", missing, f"{missing} is not set here", hint=f"set it where you build: {missing}=..."
        )
    return {name: os.environ[name] for name in names}


def _read_secret(folder: Path, name: str) -> bytes:
    path = folder / name
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            "secret_files", name, f"cannot read {path}: {why}", hint="give a file that is here"
        ) from error

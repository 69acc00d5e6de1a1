"""Hooks: programs of the guest's own that run before it is frozen and after it was forked.

```
/etc/vmfork/before-freeze.d/   once, when the template is made; a failing one fails the build
/etc/vmfork/after-fork.d/      in every fork, before it is handed out; a failing one destroys the fork
```
The agent runs them in the order of their names, as root, each within a time limit. A file whose name begins with a dot
or ends with `~` is not a hook. Any other file must be executable, so that a forgotten `chmod` is told and not passed
over.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from vmfork.errors import DeadlineExceeded, ExecError, GuestError, GuestFileError, HookError
from vmfork.wire.code import ErrorCode
from vmfork.wire.command import Command

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmfork.adopt.identity import Identity
    from vmfork.agent.client import AgentClient
    from vmfork.agent.process import GuestProcess

BEFORE_FREEZE = "/etc/vmfork/before-freeze.d"
AFTER_FORK = "/etc/vmfork/after-fork.d"

# This much of a hook's output is kept, for its error: a hook that never stops writing costs the host no more.
OUTPUT_LIMIT = 8192
_ANY_EXECUTE = 0o111


async def find_hooks(agent: AgentClient, folder: str) -> tuple[str, ...]:
    """Paths of the hooks in `folder`, in the order they run. Raises `HookError` when a file there cannot be run."""
    try:
        entries = await agent.list_dir(folder)
    except GuestFileError as error:
        if error.reason == ErrorCode.NOT_FOUND:
            return ()
        raise
    hooks = [entry for entry in entries if not entry.name.startswith(".") and not entry.name.endswith("~")]
    for entry in hooks:
        if entry.type == "dir" or (entry.type == "file" and not entry.mode & _ANY_EXECUTE):
            path = f"{folder}/{entry.name}"
            raise HookError(path, f"is not executable ({entry.type})", hint=f"chmod +x {path}, or remove it")
    return tuple(f"{folder}/{entry.name}" for entry in hooks)


def describe_fork(identity: Identity) -> dict[str, str]:
    """The environment in which hooks learn whom they run for."""
    return {
        "VMFORK_GENERATION": identity.generation.hex,
        "VMFORK_FORK_ID": identity.vm_id,
        "VMFORK_TEMPLATE": identity.template,
    }


async def run_hooks(agent: AgentClient, paths: Sequence[str], env: Mapping[str, str], *, limit_s: float) -> None:
    """Every hook ran and succeeded, each within `limit_s` seconds. Raises `HookError` for the first that did not."""
    for path in paths:
        await _run_hook(agent, path, env, limit_s)


async def _run_hook(agent: AgentClient, path: str, env: Mapping[str, str], limit_s: float) -> None:
    kept, command = bytearray(), Command([path], env=env, user="root")
    try:
        async with asyncio.timeout(limit_s), await agent.start_exec(command, timeout_s=limit_s) as hook:
            await _keep_tail(hook, kept)
            status = await hook.wait()
    except (TimeoutError, DeadlineExceeded):
        raise HookError(path, f"took longer than {limit_s:g} s", output=bytes(kept)) from None
    except ExecError as error:
        raise HookError(path, error.reason, hint="is it a program, with its interpreter in the image?") from error
    except (GuestError, OSError) as error:
        raise HookError(path, f"the agent was lost while it ran: {error}", output=bytes(kept)) from error
    if status.exit_code != 0:
        raise HookError(path, f"exit status {status.exit_code}", output=bytes(kept))


async def _keep_tail(hook: GuestProcess, kept: bytearray) -> None:
    async for _, data in hook.output():
        kept += data
        del kept[:-OUTPUT_LIMIT]

"""A running machine stands still for good, and its device state is in a file beside its RAM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.adopt.thaw import prepare_freeze

if TYPE_CHECKING:
    from pathlib import Path

    from vmfork.adopt.secrets import Secrets
    from vmfork.adopt.todo import Thaw
    from vmfork.machine.running import Running

_QUIESCE_LIMIT_S = 60.0
# After a freeze that failed, a guest that does not answer is waited for this long and no longer.
_RESUME_LIMIT_S = 10.0


async def freeze(
    running: Running,
    path: Path,
    *,
    template: str,
    secrets: Secrets,
    hook_timeout_s: float,
    scratch_fd: int | None = None,
) -> Thaw:
    """The guest is quiet and paused, and its device state is in `path`. Gives what its forks will have to do.

    What is on the disk that it writes to is in `scratch_fd`, where it has one.

    The file that the machine was started with holds its RAM, and belongs to the template from now on. If the machine
    ran on, it would write into it, and a fork of the saved state would die. Raises `GuestError` when a program still
    runs under the agent, `HookError`, and `SecretsPresent`. After any error, and on cancel, the machine runs on.
    """
    agent = running.agent
    todo = await prepare_freeze(
        agent, running.facts.identity, template=template, secrets=secrets, hook_timeout_s=hook_timeout_s
    )
    await agent.quiesce(timeout_s=_QUIESCE_LIMIT_S)
    try:
        await running.pause()
        await running.machine.save_state(path)
        if scratch_fd is not None:
            await running.machine.copy_scratch(scratch_fd)
    except BaseException as error:
        try:
            await running.resume(timeout_s=_RESUME_LIMIT_S)
        except Exception as stuck:  # noqa: BLE001 - what went wrong first is what is told
            error.add_note(f"and the machine does not run on: {stuck}")
        raise
    return todo

"""Either side of a freeze: what a guest does before it, and what each fork of it does once it has an identity."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from vmfork.adopt.hooks import AFTER_FORK, BEFORE_FREEZE, describe_fork, find_hooks, run_hooks
from vmfork.adopt.secrets import check_secrets
from vmfork.adopt.todo import Thaw
from vmfork.errors import AdoptError, DeadlineExceeded, GuestFileError, HookError, SetupError
from vmfork.wire.code import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmfork.adopt.identity import Identity
    from vmfork.adopt.secrets import Secrets
    from vmfork.agent.client import AgentClient
    from vmfork.wire.given import PlacedFile

# Sockets of processes that renew their own random numbers; see `vmfork_guest` in the image.
WATCHERS = "/run/vmfork/watchers"

# The guest has this much less time than we, so that its own account of who kept silent arrives before our deadline.
_ANSWER_MARGIN_S = 1.0
_SHOWN = 1000  # bytes of what a watcher answered, in a message


async def prepare_freeze(
    agent: AgentClient, identity: Identity, *, template: str, secrets: Secrets, hook_timeout_s: float
) -> Thaw:
    """The before-freeze hooks ran, and no secret is left. Gives what the forks will have to do.

    `template` is the name under which the machine is frozen. Raises `HookError` and `SecretsPresent`; the machine runs
    on then.
    """
    before = await find_hooks(agent, BEFORE_FREEZE)
    # Hooks first: one may remove what would be found as a secret, and put in place what the forks run.
    await run_hooks(agent, before, describe_fork(replace(identity, template=template)), limit_s=hook_timeout_s)
    return Thaw(
        hooks=await find_hooks(agent, AFTER_FORK),
        watchers=await find_watchers(agent),
        secrets_found=await check_secrets(agent, secrets),
    )


async def thaw(
    agent: AgentClient,
    identity: Identity,
    todo: Thaw,
    *,
    files: Mapping[str, PlacedFile],
    timeout_s: float,
    hook_timeout_s: float,
) -> None:
    """Watchers renewed their random numbers, `files` are in place, hooks ran: in this order.

    `timeout_s` is for watchers and files together; each hook has its own limit. Raises `AdoptError` for a watcher, and
    `SetupError` for a file or a hook.
    """
    end = time.monotonic() + timeout_s
    # Watchers first: a file or a hook may make a program draw random numbers.
    if todo.watchers:
        await _renew_watchers(agent, identity.generation.hex, timeout_s)
    for path, file in files.items():
        await _place_file(agent, path, file, end - time.monotonic())
    try:
        await run_hooks(agent, todo.hooks, describe_fork(identity), limit_s=hook_timeout_s)
    except HookError as error:
        raise SetupError(f"hook {error.path}", error.reason, output=error.output, hint=error.hint) from error


async def find_watchers(agent: AgentClient) -> tuple[str, ...]:
    """The programs that renew their own random numbers in each fork, by the names of their sockets."""
    try:
        return tuple(entry.name for entry in await agent.list_dir(WATCHERS))
    except GuestFileError as error:
        if error.reason == ErrorCode.NOT_FOUND:
            return ()
        raise


async def _renew_watchers(agent: AgentClient, generation: str, timeout_s: float) -> None:
    limit_s = max(timeout_s - _ANSWER_MARGIN_S, timeout_s / 2)  # half of a limit that is shorter than the margin
    try:
        outcomes = await agent.notify(limit_s, timeout_s=timeout_s)
    except DeadlineExceeded as error:
        raise AdoptError("watchers", f"the agent did not answer for them within {timeout_s:g} s") from error
    for found in outcomes:
        detail = found.evidence[:_SHOWN].decode(errors="replace")
        if found.outcome == "timeout":
            raise AdoptError(
                f"watcher {found.item}",
                f"did not renew its random numbers within {limit_s:g} s",
                hint="is its process stopped, or does it hold Python's lock?",
            )
        if found.outcome != "ok":
            raise AdoptError(f"watcher {found.item}", f"{found.outcome}{': ' + detail if detail else ''}")
        if detail != generation:
            raise AdoptError(f"watcher {found.item}", f"it renewed for generation {detail!r}, not {generation!r}")


async def _place_file(agent: AgentClient, path: str, file: PlacedFile, left_s: float) -> None:
    try:
        await agent.write_file(path, file.content, mode=file.mode, parents=True, timeout_s=max(left_s, 0.001))
    except (GuestFileError, DeadlineExceeded) as error:
        raise SetupError(f"file {path}", str(error)) from error

"""Secrets: what a machine may have held while it was prepared, and must not hold when it is frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmfork.errors import ConfigError, GuestFileError, SecretsPresent

if TYPE_CHECKING:
    from vmfork.agent.client import AgentClient

# The environments of all processes are read whole; a guest has a few dozen. The host does it, so that no program has to
# run in a guest that is about to be frozen.
_PROC = "/proc"


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """Absolute paths, and names of environment variables, that no template may hold unless `allowed`.

    A path is present when anything is there. A variable is present when a process of the guest was started with it. A
    secret that was removed may still lie in memory that the guest has freed. One that must never be in a template
    belongs in a fork's `env` or `files`.
    """

    paths: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    allowed: bool = False

    def __post_init__(self) -> None:
        for path in self.paths:
            if not isinstance(path, str) or not path.startswith("/") or "\0" in path:
                raise ConfigError("secret_paths", path, f"{path!r} is not an absolute path")
        for name in self.env:
            if not isinstance(name, str) or not name or "=" in name or "\0" in name:
                raise ConfigError("secret_env", name, f"{name!r} is not the name of an environment variable")


async def check_secrets(agent: AgentClient, secrets: Secrets) -> tuple[str, ...]:
    """The secrets that are present. Raises `SecretsPresent` when there are any and they are not allowed."""
    found = [path for path in secrets.paths if await agent.exists(path)]
    if secrets.env:
        found += await _find_variables(agent, secrets.env)
    if found and not secrets.allowed:
        raise SecretsPresent(found)
    return tuple(found)


async def _find_variables(agent: AgentClient, names: tuple[str, ...]) -> list[str]:
    found: list[str] = []
    for entry in await agent.list_dir(_PROC):
        if not entry.name.isdigit():
            continue
        held = {item.partition(b"=")[0] for item in (await _read_environ(agent, entry.name)).split(b"\0")}
        found += [f"${name} (process {entry.name})" for name in names if name.encode() in held]
    return found


async def _read_environ(agent: AgentClient, pid: str) -> bytes:
    try:
        return await agent.read_file(f"{_PROC}/{pid}/environ")
    except GuestFileError:
        return b""  # it ended while we looked

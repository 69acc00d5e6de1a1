"""The server of interpreters in a guest: found where it runs, sent and started where it does not.

```
/run/vmfork-code/           0700, of root
    door                    JSON: the port of the guest's loopback, the token that opens it, the version
    line                    the Unix socket of who serves at that port; a server of an older vmfork has none
    vmfork_code/            the server (python/vmfork_code), and
    vmfork_guest.py         what keeps its generators apart in forks
```
A template that was frozen with it has it in each fork: to find it there is one file to read.
"""

from __future__ import annotations

import asyncio
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vmfork.code.frame import VERSION, Ask, encode_ask, read_json
from vmfork.errors import ExecError, GuestError, GuestFileError, PortError, ProtocolError
from vmfork.image.recipe import read_guest_module
from vmfork.wire.code import ErrorCode
from vmfork.wire.command import Command

if TYPE_CHECKING:
    from vmfork.agent.client import AgentClient
    from vmfork.agent.tunnel import GuestConnection

FOLDER = "/run/vmfork-code"
_SOURCES = Path(__file__).with_name("python")
_MOST_DOOR = 4096
_PORTS = range(1, 65_536)
_LIMIT_S = 60.0
_REBUILD = "the template was frozen with another vmfork: build it again"


class Door(NamedTuple):
    """Where the server is to be had."""

    port: int
    token: str


async def open_connection(agent: AgentClient, name: str) -> GuestConnection:
    """A connection to the server, which knows us by that name. It was started where none was.

    Raises `GuestError` when the machine has no Python 3, and for a server of another version.
    """
    line = await find_connection(agent, name)
    if line is None:
        await _start(agent)
        line = await find_connection(agent, name)
    if line is None:
        raise GuestError("the server of interpreters in the guest ended as it began", hint="see vm.console_tail()")
    return line


async def find_connection(agent: AgentClient, name: str) -> GuestConnection | None:
    """Likewise; `None` where no server runs. Raises `GuestError` for one of another version."""
    door = await _find_door(agent)
    return None if door is None else await _knock(agent, door, name)


async def _knock(agent: AgentClient, door: Door, name: str) -> GuestConnection | None:
    """A connection; `None` where nobody serves there any more."""
    try:
        line = await _open_line(agent, door)
    except PortError as error:
        if error.reason != ErrorCode.REFUSED:
            raise
        return None
    try:
        await line.write(encode_ask(Ask.HELLO, f"{door.token} {name}".encode()))
    except BaseException:
        await line.abort()
        raise
    return line


async def _open_line(agent: AgentClient, door: Door) -> GuestConnection:
    try:
        return await agent.open_local(f"{FOLDER}/line", port=door.port, timeout_s=_LIMIT_S)
    except PortError as error:
        if error.reason != ErrorCode.REFUSED:
            raise
    return await agent.open_tunnel(door.port, timeout_s=_LIMIT_S)


async def _find_door(agent: AgentClient) -> Door | None:
    try:
        content = await agent.read_file(f"{FOLDER}/door", max_bytes=_MOST_DOOR, timeout_s=_LIMIT_S)
    except GuestFileError as error:
        if error.reason != ErrorCode.NOT_FOUND:
            raise
        return None
    return parse_door(content)


def parse_door(content: bytes) -> Door:
    """What the file says. Raises `ProtocolError` when it makes no sense, `GuestError` for another version."""
    found = read_json(content, dict)
    version, port, token = (found.get(name) for name in ("version", "port", "token"))
    if version != VERSION:
        told = f"the server of interpreters in the guest has version {str(version)[:20]}"
        raise GuestError(f"{told}, and this vmfork speaks with {VERSION}", hint=_REBUILD)
    if type(port) is not int or port not in _PORTS or not isinstance(token, str):
        raise ProtocolError("where the server of interpreters in the guest serves makes no sense")
    return Door(port, token)


async def _start(agent: AgentClient) -> None:
    await agent.make_dir(FOLDER, mode=0o700, parents=True, timeout_s=_LIMIT_S)
    await asyncio.gather(
        *(
            agent.write_file(f"{FOLDER}/{name}", content, mode=0o600, parents=True, timeout_s=_LIMIT_S)
            for name, content in _read_sources().items()
        )
    )
    argv = ["python3", f"{FOLDER}/vmfork_code", FOLDER]
    try:
        # Root's, whoever the programs of a container image are by default: whoever serves may become anybody.
        status, _, stderr = await agent.exec(Command(argv, user="0"), timeout_s=_LIMIT_S)
    except ExecError as error:
        hint = "build its image with the package python3"
        raise GuestError("code is run by Python 3.9 or newer in the guest, which has none", hint=hint) from error
    if status.exit_code:
        raise ExecError(argv, status.exit_code, f"exit status {status.exit_code}", stderr=stderr)


@cache
def _read_sources() -> dict[str, bytes]:
    """What is sent: 30 KB, read once."""
    paths = (path for path in _SOURCES.rglob("*") if path.suffix in (".py", ".js"))
    ours = {path.relative_to(_SOURCES).as_posix(): path.read_bytes() for path in paths}
    return {**ours, "vmfork_guest.py": read_guest_module()}

"""What the container image of a running machine says of programs, as it lies in the guest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.container.command import DEFAULTS, MOST_BYTES, PATH, decode_command
from vmfork.errors import ConfigError, GuestError, GuestFileError
from vmfork.wire.code import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmfork.machine.running import Running


async def find_image_argv(running: Running, arguments: Sequence[str], *, timeout_s: float) -> tuple[str, ...]:
    """Its entrypoint, then `arguments`, or where there are none its command.

    Raises `ConfigError` where that is nothing, and `GuestError` when a program of the guest wrote what makes no sense.
    """
    running.check_open()
    data = await _read(running, PATH, timeout_s)
    try:
        entrypoint, command = decode_command(data) if data is not None else ((), ())
    except ValueError as error:
        raise GuestError(str(error), hint="say what is to be run") from error
    found = (*entrypoint, *(arguments or command))
    if not found:
        reason = f"the image {running.facts.image!r} does not say what it runs"
        raise ConfigError("argv", None, reason, hint="say what is to be run")
    return found


async def find_image_user(running: Running, *, timeout_s: float) -> str:
    """Whom its programs run as where nothing else is said: a name or number, with a group behind a colon.

    Empty where the image says nothing: root.
    """
    fields = (await _read(running, DEFAULTS, timeout_s) or b"").split(b"\0")
    return fields[1].decode("utf-8", "surrogateescape") if len(fields) > 1 else ""


async def _read(running: Running, path: str, timeout_s: float) -> bytes | None:
    """The content of that file of the guest; `None` where there is none: it is no container image."""
    try:
        return await running.agent.read_file(f"/{path}", max_bytes=MOST_BYTES, timeout_s=timeout_s)
    except GuestFileError as error:
        if error.reason != ErrorCode.NOT_FOUND:
            raise
        return None

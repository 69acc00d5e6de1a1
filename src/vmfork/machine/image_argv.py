"""What the container image of a running machine is made to run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.container.command import MOST_BYTES, PATH, decode_command
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
    try:
        data = await running.agent.read_file(f"/{PATH}", max_bytes=MOST_BYTES, timeout_s=timeout_s)
        entrypoint, command = decode_command(data)
    except GuestFileError as error:
        if error.reason != ErrorCode.NOT_FOUND:
            raise
        entrypoint, command = (), ()
    except ValueError as error:
        raise GuestError(str(error), hint="say what is to be run") from error
    found = (*entrypoint, *(arguments or command))
    if not found:
        reason = f"the image {running.facts.image!r} does not say what it runs"
        raise ConfigError("argv", None, reason, hint="say what is to be run")
    return found

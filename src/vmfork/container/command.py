"""What a container image is made to run, as a file of its guests: it goes with a template wherever that goes.

`/etc/vmfork/command` is an object of JSON with two lists of texts, `entrypoint` and `command`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

PATH = "etc/vmfork/command"
# Folder, user and variables of programs, read by the agent: guest/defaults.c draws it.
DEFAULTS = "etc/vmfork/defaults"
# More than the kernel takes of arguments (execve(2): a quarter of a stack's limit, 2 MiB by default), in JSON's form.
MOST_BYTES = 16 << 20


def encode_command(entrypoint: Sequence[str], command: Sequence[str]) -> bytes:
    return json.dumps({"entrypoint": [*entrypoint], "command": [*command]}).encode()


def decode_command(data: bytes) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Entrypoint and command. Raises `ValueError` for what is no such file: a guest's programs may write there."""
    try:
        body = json.loads(data)
        found = tuple(tuple(body[key]) if isinstance(body[key], list) else None for key in ("entrypoint", "command"))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"/{PATH} makes no sense: {error!r}") from error
    entrypoint, command = found
    if entrypoint is None or command is None or not all(isinstance(each, str) for each in (*entrypoint, *command)):
        raise ValueError(f"/{PATH} makes no sense: it has no two lists of texts")
    return entrypoint, command

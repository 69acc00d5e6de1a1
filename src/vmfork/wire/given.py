"""What callers give, in the one form that goes over the line. Anything else raises a `ConfigError` that names it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vmfork.errors import ConfigError

if TYPE_CHECKING:
    Buffer = bytes | bytearray | memoryview
    GuestPath = str | os.PathLike[str]


def check_path(path: GuestPath, *, field: str = "path") -> str:
    """The guest's path as text. Raises `ConfigError` when it is no path, or not absolute."""
    try:
        text = os.fspath(path)
    except TypeError:
        raise ConfigError(field, path, f"{path!r} is not a path", hint="give text or a Path") from None
    if not isinstance(text, str) or "\0" in text:
        raise ConfigError(field, path, f"{path!r} is not a path in a guest", hint="give text without NUL")
    if not text.startswith("/"):
        raise ConfigError(field, path, f"{text!r} is not absolute", hint=f"the guest has no current folder: /{text}?")
    return text


def check_content(content: Buffer | str, *, field: str) -> bytes:
    """The bytes of `content`: text as UTF-8, a buffer's as they lie in memory, whatever the shape of its items."""
    if isinstance(content, bytes):
        return content
    try:
        return content.encode() if isinstance(content, str) else memoryview(content).tobytes()
    except UnicodeEncodeError as error:
        raise ConfigError(field, content, f"is no text: {error.reason}", hint="give bytes") from None
    except TypeError:
        kind = type(content).__name__
        raise ConfigError(field, content, f"must be bytes or text, and is of type {kind}") from None

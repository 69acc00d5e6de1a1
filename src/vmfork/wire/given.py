"""What callers give, in the one form that goes over the line. Anything else raises a `ConfigError` that names it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from vmfork.errors import ConfigError

# What a caller takes at once of what a guest sends, where it says nothing else: the guest decides how much there is.
MOST_BYTES = 256 * 1024 * 1024
# The same for what goes to files of the host.
MOST_COPIED = 4 * 1024 * 1024 * 1024


class HasFileno(Protocol):
    """An open file, pipe or socket of the host."""

    def fileno(self) -> int: ...


if TYPE_CHECKING:
    Buffer = bytes | bytearray | memoryview
    GuestPath = str | os.PathLike[str]
    HostPath = str | os.PathLike[str]
    OpenFile: TypeAlias = "int | HasFileno"
    # What a file of a guest is to hold: itself, or the file of the host that holds it.
    GivenFile: TypeAlias = "Buffer | str | os.PathLike[str] | PlacedFile"


def check_path(path: GuestPath, *, field: str = "path") -> str:
    """The guest's path as text. Raises `ConfigError` when it is no path, or not absolute."""
    try:
        text = os.fspath(path)
    except TypeError:
        raise ConfigError(field, path, f"{path!r} is not a path", hint="give text or a Path") from None
    if not isinstance(text, str) or "\0" in text or not _is_encodable(text):
        raise ConfigError(field, path, f"{path!r} is not a path in a guest", hint="give text without NUL")
    if not text.startswith("/"):
        raise ConfigError(field, path, f"{text!r} is not absolute", hint=f"the guest has no current folder: /{text}?")
    return text


def check_local(path: HostPath, *, field: str = "local") -> str:
    """The host's path as text. Raises `ConfigError` when it is no path."""
    text = os.fspath(path)
    if not text or "\0" in text or not _is_encodable(text):
        raise ConfigError(field, path, f"{path!r} is not a path", hint="give a path without NUL")
    return text


def check_open(file: OpenFile, *, field: str) -> int:
    """The descriptor of what is open. Raises `ConfigError` when nothing is."""
    try:
        fd = file if isinstance(file, int) else file.fileno()
        os.fstat(fd)
    except (AttributeError, TypeError, ValueError, OSError, OverflowError) as error:
        raise ConfigError(
            field, file, f"{file!r} is no open file", hint="give an open file, a pipe or a socket"
        ) from error
    return fd


def _is_encodable(text: str) -> bool:
    """As file names are; a lone surrogate that `os.fsdecode` did not make is not."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def name_of(path: str) -> str:
    """The last name of the guest's absolute `path`; `root` where it has none, such as `/`."""
    name = path.rstrip("/").rpartition("/")[2]
    return "root" if name in ("", ".", "..") else name


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


class PlacedFile(NamedTuple):
    """A file as it is to be in a guest: what it holds, and its mode, the owner's alone where nothing says more."""

    content: bytes
    mode: int = 0o600


def check_file(file: GivenFile, *, field: str) -> PlacedFile:
    """`file` as it is to be in a guest; one of the host is read, and keeps its mode.

    Raises `ConfigError` when it can be no file's content, or cannot be read.
    """
    if isinstance(file, PlacedFile):
        return file
    if not isinstance(file, os.PathLike):
        return PlacedFile(check_content(file, field=field))
    try:
        with open(file, "rb") as opened:
            # Not that it lends its owner's rights: the owner is another one there.
            mode = os.fstat(opened.fileno()).st_mode & 0o777
            return PlacedFile(opened.read(), mode)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(field, file, f"{file} cannot be read: {why}", hint="give a file that is here") from error

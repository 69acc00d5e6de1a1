"""zstd, of Python's own library from 3.14 on, before by its backport, which is the same code."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any, Protocol

from vmfork.errors import HostError
from vmfork.late import import_late

# Loaded when it is first used: whoever builds templates or opens a factory would pay 5 ms for it.
_MODULE = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
# Level 3 takes 1.7 times the time and gives a tenth (docs/decisions/0054).
_LEVEL = 1


class ZstdError(Exception):
    """It is not what zstd made, or not all of it."""


class _Source(Protocol):
    def read(self, size: int, /) -> bytes: ...


class ZstdReader:
    """What `source` was, whose frames lie one behind the other. As much of it is in memory as is asked for.

    One that wants a window of more than 128 MiB is refused by the library. What is no frame, or ends before its end,
    raises `ZstdError`.
    """

    def __init__(self, source: _Source) -> None:
        self._file = _get("ZstdFile")(source)

    def read(self, size: int, /) -> bytes:
        """`size` bytes, less at the end."""
        try:
            data: bytes = self._file.read(size)
        except (EOFError, _get("ZstdError")) as error:
            raise ZstdError(str(error)) from error
        return data


def compress(data: bytes) -> bytes:
    """One frame. Other threads run meanwhile."""
    packed: bytes = _get("compress")(data, _LEVEL)
    return packed


def decompress(data: bytes, size_bytes: int) -> bytes:
    """The `size_bytes` bytes that were compressed to the one frame `data`. Raises `ValueError` when they are not that.

    No more than that is made of it, whatever it claims.
    """
    reader = _get("ZstdDecompressor")()
    try:
        found: bytes = reader.decompress(data, max_length=size_bytes + 1)
        # Its end may lie behind the last of its content.
        rest = b"" if reader.eof or len(found) > size_bytes else reader.decompress(b"", max_length=1)
    except _get("ZstdError") as error:
        raise ValueError(f"it is not zstd: {error}") from error
    if len(found) != size_bytes or rest or not reader.eof or reader.unused_data:
        raise ValueError(f"it is not one zstd frame of {size_bytes} bytes")
    return found


@cache
def _get(name: str) -> Any:
    try:
        return import_late(_MODULE, name)
    except ImportError as error:
        raise HostError(f"{_MODULE} is not installed", hint=f"install it: pip install {_MODULE}") from error

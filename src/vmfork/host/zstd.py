"""zstd, of Python's own library from 3.14 on, before by its backport, which is the same code."""

from __future__ import annotations

import sys
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from vmfork.errors import HostError
from vmfork.late import import_late

if TYPE_CHECKING:
    from collections.abc import Iterator

# Loaded when it is first used: whoever builds templates or opens a factory would pay 5 ms for it.
_MODULE = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
# Level 3 takes 1.7 times the time and gives a tenth (docs/decisions/0054).
_LEVEL = 1
# What is made of a frame at a time: what a processor keeps near while it is used.
_PIECE = 1 << 18


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


def compress(data: bytes | memoryview) -> bytes:
    """One frame. Other threads run meanwhile."""
    packed: bytes = _get("compress")(data, _LEVEL)
    return packed


def decompress(data: bytes, size_bytes: int) -> bytes:
    """The `size_bytes` bytes that were compressed to the one frame `data`. Raises as `decompress_in_pieces`."""
    return b"".join(decompress_in_pieces(data, size_bytes))


def decompress_in_pieces(data: bytes, size_bytes: int) -> Iterator[bytes]:
    """The same, piece by piece; what was given before an error is of no use.

    Raises `ValueError` when `data` is not one frame of `size_bytes` bytes. No more than that is made of it, whatever it
    claims.
    """
    reader, left = _get("ZstdDecompressor")(), size_bytes
    while not reader.eof:
        try:
            # One more than is left: its end may lie behind the last of its content.
            found: bytes = reader.decompress(data, max_length=min(_PIECE, left + 1))
        except _get("ZstdError") as error:
            raise ValueError(f"it is not zstd: {error}") from error
        data, left = b"", left - len(found)
        if left < 0 or (not found and not reader.eof and reader.needs_input):
            break
        if found:
            yield found
    if left or not reader.eof or reader.unused_data:
        raise ValueError(f"it is not one zstd frame of {size_bytes} bytes")


@cache
def _get(name: str) -> Any:
    try:
        return import_late(_MODULE, name)
    except ImportError as error:
        raise HostError(f"{_MODULE} is not installed", hint=f"install it: pip install {_MODULE}") from error

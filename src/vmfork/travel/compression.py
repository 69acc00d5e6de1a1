"""zstd, of Python's own library from 3.14 on, before by its backport, which is the same code."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

from vmfork.errors import HostError
from vmfork.late import import_late

# Loaded when it is first used: whoever builds templates or opens a factory would pay 5 ms for it.
_MODULE = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
# Level 3 takes 1.7 times the time and gives a tenth (docs/decisions/0054).
_LEVEL = 1


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

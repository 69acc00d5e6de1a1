"""zstd, of Python's own library from 3.14 on, before by its backport, which is the same code."""

from __future__ import annotations

import sys
from typing import Any

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# Level 3 takes half as long again and gives a tenth (docs/decisions/0054).
_LEVEL = 1
_zstd: Any = zstd


def compress(data: bytes) -> bytes:
    """One frame. Other threads run meanwhile."""
    packed: bytes = _zstd.compress(data, _LEVEL)
    return packed


def decompress(data: bytes, size_bytes: int) -> bytes:
    """The `size_bytes` bytes that were compressed to the one frame `data`. Raises `ValueError` when they are not that.

    No more than that is made of it, whatever it claims.
    """
    reader = _zstd.ZstdDecompressor()
    try:
        found: bytes = reader.decompress(data, max_length=size_bytes + 1)
        # Its end may lie behind the last of its content.
        rest = b"" if reader.eof or len(found) > size_bytes else reader.decompress(b"", max_length=1)
    except _zstd.ZstdError as error:
        raise ValueError(f"it is not zstd: {error}") from error
    if len(found) != size_bytes or rest or not reader.eof or reader.unused_data:
        raise ValueError(f"it is not one zstd frame of {size_bytes} bytes")
    return found

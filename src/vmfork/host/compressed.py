"""A stream as it was before gzip, bzip2, xz or zstd made it smaller.

As much of it is in memory as is asked for. tarfile's own reader decompresses all that it has read at once, 64 MB of 64
KiB that gzip made and far more of what xz or bzip2 did, and copies what is left with each piece that it gives (CPython
3.11 to 3.13).
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from typing import TYPE_CHECKING, Any, Protocol

from vmfork.host.zstd import ZstdError, ZstdReader

if TYPE_CHECKING:
    from collections.abc import Callable

# By what it begins with; and what undoes it.
_KINDS: tuple[tuple[bytes, str, Callable[[Any], Any]], ...] = (
    (b"\x1f\x8b\x08", "gunzip", lambda source: gzip.GzipFile(fileobj=source, mode="rb")),
    (b"BZh", "bunzip2", bz2.BZ2File),
    (b"\xfd7zXZ", "unxz", lzma.LZMAFile),
    (b"\x5d\x00\x00\x80", "unlzma", lzma.LZMAFile),
    (b"\x28\xb5\x2f\xfd", "unzstd", ZstdReader),
)
_MOST_MAGIC = max(len(magic) for magic, _, _ in _KINDS)


class Source(Protocol):
    """What bytes are read from."""

    def read(self, size: int, /) -> bytes:
        """All of `size` bytes, less at the end."""
        ...


class DamagedError(Exception):
    """It is not what gzip, bzip2, xz or zstd made, or not all of it."""


def decompressed(source: Source) -> Source:
    """What `source` was before it was made smaller; the same where it was not. Reading it may raise `DamagedError`."""
    begun = _Begun(source)
    opened = next((opens for magic, _, opens in _KINDS if begun.begin.startswith(magic)), None)
    return begun if opened is None else _Decompressed(opened(begun))


def find_undoing(source: Source) -> str:
    """The program that gives what `source` was before it was made smaller; empty where it was not."""
    begin = source.read(_MOST_MAGIC)
    return next((program for magic, program, _ in _KINDS if begin.startswith(magic)), "")


class _Begun:
    """A source of which the first bytes were looked at."""

    def __init__(self, source: Source) -> None:
        self.begin = source.read(_MOST_MAGIC)
        self._source = source

    def read(self, size: int, /) -> bytes:
        begin, self.begin = self.begin[:size], self.begin[size:]
        return begin + self._source.read(size - len(begin)) if len(begin) < size else begin


class _Decompressed:
    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, size: int, /) -> bytes:
        try:
            data: bytes = self._file.read(size)
        except (EOFError, zlib.error, lzma.LZMAError, ZstdError) as error:
            raise DamagedError(str(error)) from error
        except OSError as error:
            if error.errno is not None:  # the source's own
                raise
            raise DamagedError(str(error)) from error
        return data

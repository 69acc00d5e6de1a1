"""A stream as it was before gzip, bzip2, xz or zstd made it smaller.

As much of it is in memory as is asked for. tarfile's own reader decompresses all that it has read at once, 64 MB of 64
KiB that gzip made and far more of what xz or bzip2 did, and copies what is left with each piece that it gives (CPython
3.11 to 3.13). What undoes it has a bound too: a few bytes may ask xz for 4 GiB.
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

_PIECE = 1 << 16
# What `xz -9` makes needs 65 MiB.
_MOST_MEMORY = 256 << 20
# What the library says of that, and what is told.
_SAID = {"Memory usage limit exceeded": f"xz needs more than {_MOST_MEMORY >> 20} MiB of memory for it"}


class _XzReader:
    """What `source` was, whose streams lie one behind the other, with so much memory and no more.

    `lzma.LZMAFile` takes no limit. Raises `LZMAError` and `EOFError`.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._stream = _new_stream()
        self._given = b""

    def read(self, size: int, /) -> bytes:
        """`size` bytes, less at the end."""
        pieces = []
        while size > 0 and (not self._stream.eof or self._begin_next()):
            pieces.append(self._stream.decompress(self._take(), size))
            size -= len(pieces[-1])
        return b"".join(pieces)

    def _begin_next(self) -> bool:
        """Whether there is another stream, which has begun then. Zeros between two are padding."""
        self._given = self._stream.unused_data.lstrip(b"\0")
        while not self._given:
            if not (more := self._source.read(_PIECE)):
                return False
            self._given = more.lstrip(b"\0")
        self._stream = _new_stream()
        return True

    def _take(self) -> bytes:
        if not self._stream.needs_input:
            return b""
        data, self._given = self._given or self._source.read(_PIECE), b""
        if not data:
            raise EOFError("it ends before its end")
        return data


def _new_stream() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_AUTO, memlimit=_MOST_MEMORY)


# By what it begins with; and what undoes it.
_KINDS: tuple[tuple[bytes, str, Callable[[Any], Any]], ...] = (
    (b"\x1f\x8b\x08", "gunzip", lambda source: gzip.GzipFile(fileobj=source, mode="rb")),
    (b"BZh", "bunzip2", bz2.BZ2File),
    (b"\xfd7zXZ", "unxz", _XzReader),
    (b"\x5d\x00\x00\x80", "unlzma", _XzReader),
    (b"\x28\xb5\x2f\xfd", "unzstd", ZstdReader),
)
_MOST_MAGIC = max(len(magic) for magic, _, _ in _KINDS)


class Source(Protocol):
    """What bytes are read from."""

    def read(self, size: int, /) -> bytes:
        """All of `size` bytes, less at the end."""
        ...


class DamagedError(Exception):
    """It is not what gzip, bzip2, xz or zstd made, or not all of it; or undoing it takes more memory than it may."""


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
            raise DamagedError(_SAID.get(str(error), str(error))) from error
        except OSError as error:
            if error.errno is not None:  # the source's own
                raise
            raise DamagedError(str(error)) from error
        return data

"""Headers and contents of a tar that may be anybody's, one member at a time, as much in memory as is asked for."""

from __future__ import annotations

import tarfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

from vmfork.host.compressed import decompressed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from vmfork.host.compressed import Source

_PIECE_SIZE = 65_536
# All that says something of one member: tarfile has that in memory. PATH_MAX is 4,096; a file that has 40,000 holes
# says so in half of this.
_MOST_HEADER = 1024 * 1024
_LARGEST_SIZE = 2**63 - 1

M = TypeVar("M", bound=tarfile.TarInfo)


class _Member(tarfile.TarInfo):
    """A header. An invalid one raises `ReadError`: tarfile takes it, and a tar that is cut off, for the end."""

    ENDS: tuple[type[tarfile.HeaderError], ...] = (tarfile.EOFHeaderError,)  # type: ignore[attr-defined] # an empty block

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except tarfile.HeaderError as error:
            if isinstance(error, cls.ENDS):
                raise
            raise tarfile.ReadError(f"it ends before its end, or has an invalid header ({error})") from error

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        return _checked(super().frombuf(buf, encoding, errors))

    @classmethod
    def _frombuf(cls, *args: Any, **options: Any) -> Self:
        """What Python 3.13, as Debian 13 has it, calls in place of `frombuf`; 3.11 has no such method."""
        member: Self = super()._frombuf(*args, **options)  # type: ignore[misc]
        return _checked(member)


class _MemberOfKnown(_Member):
    """The same of a tar whose digest is known: it may end behind any member, without a mark of its end."""

    ENDS = (*_Member.ENDS, tarfile.EmptyHeaderError)  # type: ignore[attr-defined]


def _checked(member: M) -> M:
    if member.size < 0:
        raise tarfile.ReadError(f"it has a header that announces {member.size} bytes")
    return member


class _Headers:
    """The stream of a tar while tarfile reads what says something of one member.

    More than `_MOST_HEADER` raises `ReadError`: names, attributes and maps of holes may be as long as a tar says, and a
    small compressed tar may hold long ones.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._left = _MOST_HEADER
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        self._left -= size
        if self._left < 0:
            raise tarfile.ReadError(f"what it says of one member takes more than {_MOST_HEADER} bytes")
        data: bytes = self._stream.read(size)
        return data


class _Tar(tarfile.TarFile):
    """A tar whose headers are bounded."""

    def next(self) -> tarfile.TarInfo | None:
        stream: Any = self.fileobj
        self.fileobj = cast(Any, _Headers(stream))
        try:
            return super().next()
        finally:
            self.fileobj = stream


@contextmanager
def making_sense() -> Iterator[None]:
    """Raises `ReadError` for whatever tarfile raises where a tar makes no sense.

    A map of holes that is cut off is an `IndexError`, one without numbers a `ValueError`, an endless time an
    `OverflowError`, and a thousand headers for one name are a `RecursionError` (CPython 3.11 to 3.13).
    """
    try:
        yield
    except (TypeError, ValueError, IndexError, OverflowError, RecursionError) as error:
        raise tarfile.ReadError("it makes no sense") from error


def open_tar(source: Source) -> tarfile.TarFile:
    """The tar that `source` is, compressed or not. Raises `ReadError`; reading it may raise `DamagedError`."""
    with making_sense():
        return _Tar.open(fileobj=cast(Any, decompressed(source)), mode="r|", bufsize=_PIECE_SIZE, tarinfo=_Member)


def open_plain_tar(source: Source) -> tarfile.TarFile:
    """The tar that `source` is, which nothing made smaller; its names are UTF-8, whatever this host's are.

    It may lack the mark of its end, as layers of `umoci insert` do (0.4.7): whoever reads it compares its digest.
    """
    with making_sense():
        return _Tar.open(
            fileobj=cast(Any, source),
            mode="r|",
            bufsize=_PIECE_SIZE,
            tarinfo=_MemberOfKnown,
            encoding="utf-8",
            errors="surrogateescape",
        )


def next_member(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The next member, `None` at the end. Raises `ReadError` and `DamagedError`."""
    with making_sense():
        member = tar.next()
    tar.members.clear()  # type: ignore[attr-defined]  # it keeps them all, however many come
    if member is not None and not 0 <= member.size <= _LARGEST_SIZE:
        raise tarfile.ReadError(f"{member.name!r} has a size of {member.size} bytes")
    return member


def read_content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[tuple[int, bytes]]:
    """The content, without holes where the tar has them: then its pieces lie one behind the other."""
    stream: Any = tar.fileobj
    stream.seek(member.offset_data)
    for at, size in getattr(member, "sparse", None) or [(0, member.size)]:
        if not 0 <= at <= at + size <= _LARGEST_SIZE:
            raise tarfile.ReadError(f"{member.name!r} has {size} bytes at {at}")
        for offset in range(at, at + size, _PIECE_SIZE):
            data = stream.read(min(_PIECE_SIZE, at + size - offset))
            yield offset, data
            if len(data) < min(_PIECE_SIZE, at + size - offset):
                raise tarfile.ReadError("it ends before its end")

"""Archives in the "newc" cpio format, the one an initramfs has (kernel: Documentation/driver-api/early-userspace).

```
"070701"  13 fields of 8 hex digits: ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor
          namesize check;  name NUL, padded to 4;  body, padded to 4        ... entry "TRAILER!!!", padded to 512
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"
_BLOCK = 512


def encode_entry(
    name: str,
    mode: int,
    body: bytes = b"",
    *,
    ino: int,
    mtime: int = 0,
    nlink: int = 1,
    uid: int = 0,
    gid: int = 0,
    device: tuple[int, int] = (0, 0),
) -> bytes:
    """One entry, padded. `mode` carries the type bits; a symbolic link's `body` is its target.

    `device` are the major and minor number of one that is a device.
    """
    encoded = name.encode("utf-8", "surrogateescape") + b"\0"
    fields = (ino, mode, uid, gid, nlink, mtime, len(body), 0, 0, *device, len(encoded), 0)
    head = _MAGIC + b"".join(b"%08X" % field for field in fields) + encoded
    return _padded(head, 4) + _padded(body, 4)


def _padded(data: bytes, to: int) -> bytes:
    return data + bytes(-len(data) % to)


class Sink(Protocol):
    """What an archive can be written to."""

    def write(self, data: bytes, /) -> object: ...


class Writer:
    """Writes entries to `file` in the order given; `finish()` makes it an archive. Does not own the file."""

    def __init__(self, file: Sink) -> None:
        self._file = file
        self._written = 0
        self._inodes = 0

    def next_ino(self) -> int:
        """An inode number that no entry has yet."""
        self._inodes += 1
        return self._inodes

    def add(
        self,
        name: str,
        mode: int,
        body: bytes = b"",
        *,
        mtime: int = 0,
        uid: int = 0,
        gid: int = 0,
        ino: int | None = None,
        nlink: int = 1,
        device: tuple[int, int] = (0, 0),
    ) -> None:
        """The entry is in the archive. Hard links share `ino` and `nlink`; the last of them carries the body."""
        number = self.next_ino() if ino is None else ino
        self._write(
            encode_entry(name, mode, body, ino=number, mtime=mtime, nlink=nlink, uid=uid, gid=gid, device=device)
        )

    def finish(self) -> int:
        """The archive is complete; its size in bytes."""
        self._write(encode_entry(_TRAILER, 0, ino=0))
        self._write(bytes(-self._written % _BLOCK))
        return self._written

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._written += len(data)


def read_entries(data: bytes) -> Iterator[tuple[str, int, bytes]]:
    """Name, mode and body of each entry of the archive `data`. Raises `ValueError` for what is none."""
    at = 0
    while True:
        head = data[at : at + 110]
        if head[:6] != _MAGIC or len(head) != 110:
            raise ValueError("it is no archive in the newc format, or was cut off")
        fields = [int(head[place : place + 8], 16) for place in range(6, 110, 8)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = data[at + 110 : at + 110 + name_size - 1].decode("utf-8", "surrogateescape")
        body = at + -(-(110 + name_size) // 4) * 4
        if name == _TRAILER:
            return
        yield name, mode, data[body : body + size]
        at = body + -(-size // 4) * 4

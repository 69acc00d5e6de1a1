"""Archives in the "newc" cpio format, the one an initramfs has (kernel: Documentation/driver-api/early-userspace).

```
"070701"  13 fields of 8 hex digits: ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor
          namesize check;  name NUL, padded to 4;  body, padded to 4        ... entry "TRAILER!!!", padded to 512
```
"""

from __future__ import annotations

from typing import Protocol

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"
_BLOCK = 512


def encode_entry(
    name: str, mode: int, body: bytes = b"", *, ino: int, mtime: int = 0, nlink: int = 1, uid: int = 0, gid: int = 0
) -> bytes:
    """One entry, padded. `mode` carries the type bits; a symbolic link's `body` is its target."""
    encoded = name.encode("utf-8", "surrogateescape") + b"\0"
    fields = (ino, mode, uid, gid, nlink, mtime, len(body), 0, 0, 0, 0, len(encoded), 0)
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
    ) -> None:
        """The entry is in the archive. Hard links share `ino` and `nlink`; the last of them carries the body."""
        number = self.next_ino() if ino is None else ino
        self._write(encode_entry(name, mode, body, ino=number, mtime=mtime, nlink=nlink, uid=uid, gid=gid))

    def finish(self) -> int:
        """The archive is complete; its size in bytes."""
        self._write(encode_entry(_TRAILER, 0, ino=0))
        self._write(bytes(-self._written % _BLOCK))
        return self._written

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._written += len(data)

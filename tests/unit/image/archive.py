"""An archive read back by other code than what wrote it."""

from __future__ import annotations

FIELDS = ("ino", "mode", "uid", "gid", "nlink", "mtime", "filesize", "a", "b", "c", "d", "namesize", "check")


def parse(data: bytes) -> list[tuple[str, dict[str, int], bytes]]:
    """The entries of an archive, as the kernel's init/initramfs.c reads them."""
    at, entries = 0, []
    while True:
        assert data[at : at + 6] == b"070701"
        numbers = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        fields = dict(zip(FIELDS, numbers, strict=True))
        name = data[at + 110 : at + 110 + fields["namesize"]]
        assert name.endswith(b"\0")
        body_at = (at + 110 + fields["namesize"] + 3) & ~3
        body = data[body_at : body_at + fields["filesize"]]
        at = (body_at + fields["filesize"] + 3) & ~3
        if name == b"TRAILER!!!\0":
            return entries
        entries.append((name[:-1].decode("utf-8", "surrogateescape"), fields, body))

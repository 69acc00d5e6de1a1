"""The archive's bytes, and that cpio(1) reads what is written."""

from __future__ import annotations

import io
import stat
import subprocess

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.image.archive import parse
from vmfork.image import cpio


def test_an_entry_byte_for_byte():
    want = (
        b"070701" b"00000007" b"000081A4" b"00000000" b"00000000" b"00000001" b"0000000A" b"00000005"
        b"00000000" b"00000000" b"00000000" b"00000000" b"00000006" b"00000000"
        b"a/b.c\0" b"hello\0\0\0"
    )  # fmt: skip
    assert cpio.encode_entry("a/b.c", 0o100644, b"hello", ino=7, mtime=10) == want


def test_an_empty_archive_is_a_padded_trailer():
    file = io.BytesIO()
    assert cpio.Writer(file).finish() == 512
    assert file.getvalue()[110:121] == b"TRAILER!!!\0"
    assert len(file.getvalue()) == 512


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=40).filter(
                lambda name: name != "TRAILER!!!"
            ),
            st.integers(0, 0o7777),
            st.binary(max_size=300),
            st.integers(0, 0xFFFFFFFF),
        ),
        max_size=20,
    )
)
def test_what_is_written_is_read(files):
    file = io.BytesIO()
    writer = cpio.Writer(file)
    for name, mode, body, mtime in files:
        writer.add(name, stat.S_IFREG | mode, body, mtime=mtime)
    assert writer.finish() == len(file.getvalue())
    entries = parse(file.getvalue())
    assert [(name, f["mode"] & 0o7777, body, f["mtime"]) for name, f, body in entries] == files
    assert all(f["uid"] == f["gid"] == 0 for _, f, _ in entries)
    assert len({f["ino"] for _, f, _ in entries}) == len(files)


def test_cpio_lists_it():
    file = io.BytesIO()
    writer = cpio.Writer(file)
    writer.add("etc", stat.S_IFDIR | 0o755)
    writer.add("etc/motd", stat.S_IFREG | 0o640, b"hello\n")
    writer.add("init", stat.S_IFLNK | 0o777, b"usr/lib/agent")
    writer.finish()
    listing = subprocess.run(
        ["cpio", "-itv", "--quiet", "--numeric-uid-gid"], input=file.getvalue(), capture_output=True, check=True
    ).stdout.decode()
    assert [line.split()[0] for line in listing.splitlines()] == ["drwxr-xr-x", "-rw-r-----", "lrwxrwxrwx"]
    assert listing.splitlines()[2].endswith("init -> usr/lib/agent")
    assert [line.split()[2:5] for line in listing.splitlines()][1] == ["0", "0", "6"]

"""A tmpfs of our own is private, bounded and runs nothing; it goes away with all that was stacked on it."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest

from tests.children import exit_code_of, fork_child
from tests.rules.traces import mount_points
from vmfork.errors import HostError
from vmfork.host.tmpfs import mount_tmpfs, unmount

as_root = pytest.mark.needs("root")
SIZE = 1024 * 1024


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "mount point"
    folder.mkdir()
    folder.chmod(0o777)
    yield folder
    unmount(folder)
    assert str(tmp_path) not in "\n".join(mount_points())


@as_root
def test_it_is_private_bounded_and_runs_nothing(folder):
    assert mount_tmpfs(folder, size_bytes=SIZE)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    info = os.statvfs(folder)
    assert info.f_flag & (os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC) == os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC
    assert info.f_blocks * info.f_frsize == SIZE
    (folder / "full").write_bytes(bytes(SIZE))
    with pytest.raises(OSError, match="No space left"):
        (folder / "more").write_bytes(bytes(4096))
    (folder / "full").unlink()
    (folder / "program").write_text("#!/bin/sh\n")
    (folder / "program").chmod(0o755)
    with pytest.raises(PermissionError):
        os.execv(folder / "program", ["program"])


@as_root
def test_all_that_was_stacked_is_unmounted_and_unmounting_again_does_nothing(folder):
    for _ in range(3):
        assert mount_tmpfs(folder, size_bytes=SIZE)
    unmount(folder)
    assert not os.path.ismount(folder)
    unmount(folder)
    unmount(folder / "missing")


@as_root
def test_who_has_a_file_open_keeps_it(folder):
    assert mount_tmpfs(folder, size_bytes=SIZE)
    (folder / "file").write_bytes(b"content")
    with (folder / "file").open("rb") as file:
        unmount(folder)
        assert list(folder.iterdir()) == []
        assert file.read() == b"content"


@as_root
def test_a_link_to_a_mount_point_is_not_unmounted(folder, tmp_path):
    assert mount_tmpfs(folder, size_bytes=SIZE)
    (tmp_path / "link").symlink_to(folder)
    unmount(tmp_path / "link")
    assert os.path.ismount(folder)


@as_root
def test_a_missing_folder_is_told(tmp_path):
    with pytest.raises(HostError, match=r"cannot mount a tmpfs at .*/missing: No such file"):
        mount_tmpfs(tmp_path / "missing", size_bytes=SIZE)


def test_an_ordinary_user_may_not_mount_and_may_ask():
    """Not even over a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="vmfork-test-", dir="/dev/shm"))
    if os.getuid() == 0:
        os.chown(folder, 65534, 65534)

    def ask():
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        assert not mount_tmpfs(folder, size_bytes=SIZE)
        unmount(folder)

    try:
        assert exit_code_of(fork_child(ask)) == 0
        assert not os.path.ismount(folder)
    finally:
        unmount(folder)
        folder.rmdir()

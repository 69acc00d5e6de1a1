"""Facts are those of the kernel, read now."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from vmfork.host import facts


def test_the_boot_id_is_one_and_the_same():
    assert str(uuid.UUID(facts.boot_id())) == facts.boot_id() == facts.boot_id()
    assert facts.boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def test_kernel_and_architecture_are_those_of_uname():
    assert facts.kernel_release() == platform.release()


def test_available_memory_is_part_of_all_memory():
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < facts.available_memory_bytes() < total


def test_free_space_is_that_of_the_nearest_folder_that_exists(tmp_path):
    info = os.statvfs(tmp_path)
    free = facts.free_space_bytes(tmp_path / "a" / "b" / "c")
    assert free == pytest.approx(info.f_bavail * info.f_frsize, rel=0.2)
    assert facts.free_space_bytes(Path("/proc/nowhere")) == 0


def test_the_cpu_is_named_with_a_digest_of_its_flags():
    assert facts.cpu_name() == facts.cpu_name()
    assert re.search(r"\(\d+-\d+-\d+, flags [0-9a-f]{12}\)$", facts.cpu_name())


def test_ids_are_counted_over_all_lines_of_the_map():
    assert facts._count_ids("         0          0 4294967295\n") == 4294967295
    assert facts._count_ids("0 1000 1\n1 100000 65536\n") == 65537


def test_who_may_mount_is_who_can():
    """In a user namespace with one id root is called root, and is none for the mounts of the host."""
    program = "from vmfork.host import facts; print(facts.may_mount())"
    told = subprocess.run(
        ["unshare", "--user", "--map-root-user", sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode != 0 or told.stdout == "False\n"

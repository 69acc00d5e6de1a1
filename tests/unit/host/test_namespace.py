"""What keeps a mount namespace alive, and which mounts are seen in one alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from vmfork.host.namespace import find_holder, is_private, mount_namespace


def test_a_namespace_is_held_by_a_process_in_it() -> None:
    assert re.fullmatch(r"process \d+ \(.+\)", find_holder(mount_namespace()))


def test_nothing_holds_one_that_is_gone_unless_there_are_processes_that_cannot_be_seen() -> None:
    assert find_holder("mnt:[1]") in ("", "a process that cannot be seen from here")


@pytest.mark.needs("namespaces")
def test_one_that_is_kept_by_a_file_is_held_by_that(tmp_path) -> None:
    """A namespace can be kept where mounts are private alone: in one of our own, which nobody else sees.

    All on one CPU: only an older namespace may keep a younger one. Linux 6.18 seems to tell the age by numbers of which
    each CPU has a stock: on two, once in 12 runs it failed ("mount /proc/PID/ns/mnt: Invalid argument"), on one never.
    """
    kept = tmp_path / "kept"
    kept.touch()
    script = f"""
mount --bind {tmp_path} {tmp_path}
mount --make-private {tmp_path}
name=$(unshare --mount={kept} readlink /proc/self/ns/mnt)
exec {sys.executable} -c "from vmfork.host.namespace import find_holder; print(find_holder('$name'))"
"""
    one = str(min(os.sched_getaffinity(0)))
    told = subprocess.run(
        ["taskset", "--cpu-list", one, "unshare", "--mount", "sh", "-ec", script],
        check=True,
        capture_output=True,
        text=True,
    )
    assert told.stdout == f"the file {kept}\n"


def test_what_is_mounted_for_all_is_not_private(tmp_path) -> None:
    assert not is_private(tmp_path)

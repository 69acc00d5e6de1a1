"""How many descriptors and tasks are left: told as the kernel would refuse them."""

from __future__ import annotations

import os
import resource
import threading

import pytest

from vmfork.host import allowance, cgroup


def test_each_descriptor_that_is_opened_is_one_less_left() -> None:
    before = allowance.count_descriptors_left(limit=100_000)
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(7)]
    assert allowance.count_descriptors_left(limit=100_000) == before - 7
    for fd in held:
        os.close(fd)
    assert allowance.count_descriptors_left(limit=100_000) == before
    assert allowance.count_descriptors_left(limit=1) == 0
    assert allowance.count_descriptors_left(limit=resource.RLIM_INFINITY) is None


def test_an_older_kernel_has_its_entries_counted(monkeypatch) -> None:
    told = allowance._count_open()

    class Unsized:
        st_size = 0

    monkeypatch.setattr(allowance.os, "stat", lambda _path: Unsized())
    assert allowance._count_open() == told


def test_a_users_tasks_are_counted_one_by_one_where_few_are_left() -> None:
    uid = os.getuid() or 1
    ended = threading.Event()
    running = allowance._count_of_user(os.getuid())
    threads = [threading.Thread(target=ended.wait) for _ in range(5)]
    for thread in threads:
        thread.start()
    try:
        # Other programs of this user may come and go meanwhile; these five stay.
        assert allowance._count_of_user(os.getuid()) >= 5
        assert running > 0
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    # All tasks of the host leave enough: nobody is counted.
    assert allowance._count_left_to_user(1000, uid=uid, limit=100_000) == 99_000
    # They do not: the user's own are counted, which here are none.
    assert allowance._count_left_to_user(1000, uid=4_000_000_000, limit=1100) == 1100


@pytest.mark.parametrize(("uid", "limit"), [(0, 100), (1, resource.RLIM_INFINITY)])
def test_root_and_who_has_no_limit_are_not_limited(uid, limit) -> None:
    assert allowance._count_left_to_user(1000, uid=uid, limit=limit) is None


def test_the_tightest_limit_counts(monkeypatch) -> None:
    monkeypatch.setattr(cgroup, "count_tasks_left", lambda: 3)
    assert allowance.count_tasks_left() == 3
    monkeypatch.setattr(cgroup, "count_tasks_left", lambda: None)
    left = allowance.count_tasks_left()
    assert left is None or left > 3

"""What is slow to make is made once, whole or not at all, and not removed under who uses it."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from hosts import cache


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "vmfork-hosts"


def make_whole(folder: Path) -> None:
    (folder / "content").write_text("whole")


def age(path: Path, seconds: float = cache.MAX_AGE_S) -> None:
    old = time.time() - seconds - 1
    os.utime(path, (old, old))


def kept_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_it_is_made_once_for_the_same_inputs() -> None:
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        make_whole(folder)

    for inputs in ("a", "a", "b"):
        with cache.open_kept("thing", inputs, make) as folder:
            assert (folder / "content").read_text() == "whole"
    assert len(made) == 2


def test_two_who_ask_at_once_make_it_once() -> None:
    made, found = [], []

    def make(folder: Path) -> None:
        made.append(folder)
        time.sleep(0.1)  # longer than the other takes to ask
        make_whole(folder)

    def ask() -> None:
        with cache.open_kept("thing", 1, make) as folder:
            found.append((folder / "content").read_text())

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), found) == (1, ["whole", "whole"])


def test_a_failure_leaves_nothing_and_the_next_makes_it(folder: Path) -> None:
    def fail(staging: Path) -> None:
        make_whole(staging)
        raise ValueError("no network")

    with pytest.raises(ValueError, match="no network"), cache.open_kept("thing", 1, fail):
        pass
    assert kept_in(folder) == []
    with cache.open_kept("thing", 1, make_whole) as made:
        assert kept_in(folder) == [made.name]


def test_what_a_killed_maker_left_is_not_taken_for_whole(folder: Path) -> None:
    with cache.open_kept("thing", 1, make_whole) as made:
        pass
    made.rename(f"{made}.staging")
    (folder / f"{made.name}.staging" / "sealed").mkdir(mode=0o500)
    cache.sweep()
    assert kept_in(folder) == []


def test_after_a_week_it_is_made_anew() -> None:
    with cache.open_kept("thing", 1, make_whole) as made:
        (made / "old").touch()
    age(made)
    with cache.open_kept("thing", 1, make_whole) as made:
        assert not (made / "old").exists()


def test_what_is_in_use_is_not_swept_however_old(folder: Path) -> None:
    with cache.open_kept("thing", 1, make_whole) as made:
        age(made)
        cache.sweep()
        assert made.exists()
    cache.sweep()
    assert kept_in(folder) == []


def test_what_is_not_asked_for_goes_before_it_is_too_old(folder: Path) -> None:
    kept = []
    for name in ("asked", "forgotten"):
        with cache.open_kept(name, 1, make_whole) as made:
            kept.append(made)
        age(Path(f"{made}.lock"), cache.MAX_IDLE_S)
    with cache.open_kept("asked", 1, make_whole):
        pass
    cache.sweep()
    assert kept_in(folder) == [kept[0].name]

"""Where things are kept; above all what a neighbour on the host cannot do about it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmfork.config import find_places, places

UID = 4711
NEIGHBOUR = 4712


@pytest.fixture
def shared(tmp_path, monkeypatch):
    """The shared-memory tmpfs, with folders of several users."""
    monkeypatch.setattr(places, "_SHARED_MEMORY", tmp_path)
    owners: dict[Path, int] = {}

    def is_folder_of(path: Path, uid: int) -> bool:
        return path.is_dir() and not path.is_symlink() and owners.get(path, NEIGHBOUR) == uid

    # Only root could give folders away.
    monkeypatch.setattr(places, "_is_folder_of", is_folder_of)

    def make(name: str, *, owner: int = NEIGHBOUR) -> Path:
        path = tmp_path / name
        path.mkdir()
        owners[path] = owner
        return path

    return make


def runtime() -> str:
    return find_places({"HOME": "/h"}, uid=UID).runtime.name


def test_each_user_has_a_name_of_his_own_there(shared) -> None:
    assert runtime() == "vmfork-4711"
    assert find_places({"HOME": "/h"}, uid=UID + 1).runtime.name == "vmfork-4712"


def test_who_makes_the_folder_first_denies_nobody_his(shared) -> None:
    shared("vmfork-4711")
    assert runtime() == "vmfork-4711.1"
    shared("vmfork-4711.1")
    (shared("vmfork-4711.2").parent / "vmfork-4711.3").write_text("a file denies it no more than a folder")
    (shared("vmfork-4711.4").parent / "vmfork-4711.5").symlink_to("/")
    assert runtime() == "vmfork-4711.6"


def test_the_one_that_is_there_is_found_again_by_every_command(shared) -> None:
    """Also when the neighbour takes his away, or makes more: machines run below it."""
    squatted = shared("vmfork-4711")
    shared("vmfork-4711.1", owner=UID)
    assert runtime() == "vmfork-4711.1"
    squatted.rmdir()
    assert runtime() == "vmfork-4711.1"


def test_the_plain_name_is_taken_where_it_is_ours(shared) -> None:
    shared("vmfork-4711", owner=UID)
    shared("vmfork-4711.1", owner=UID)
    assert runtime() == "vmfork-4711"


def test_names_that_only_begin_alike_count_nothing(shared) -> None:
    for name in ("vmfork-47111", "vmfork-4711.01", "vmfork-4711.x", "vmfork-4711.", "vmfork-4711x1", "vmfork-471"):
        shared(name, owner=UID)
    assert runtime() == "vmfork-4711"


def test_many_names_in_the_way_are_no_hindrance(shared) -> None:
    shared("vmfork-4711")
    for number in range(1, 300):
        shared(f"vmfork-4711.{number}")
    shared("vmfork-4711.4000000000")
    assert runtime() == "vmfork-4711.300"


def test_what_the_environment_says_comes_first(shared) -> None:
    found = find_places({"VMFORK_HOME": "/a", "VMFORK_RUNTIME_DIR": "/b", "HOME": "/h"}, uid=UID)
    assert (found.home, found.runtime) == (Path("/a"), Path("/b"))
    assert find_places({}, uid=0).runtime == Path("/run/vmfork")


@pytest.mark.needs("root")
def test_a_folder_is_whose_owner_it_has(tmp_path) -> None:
    os.chown(tmp_path, UID, UID)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    assert places._is_folder_of(tmp_path, UID)
    assert not places._is_folder_of(tmp_path, NEIGHBOUR)
    assert not places._is_folder_of(tmp_path / "link", 0)
    assert not places._is_folder_of(tmp_path / "file", 0)
    assert not places._is_folder_of(tmp_path / "none", 0)

"""The store of disks: whose they are, that another is noticed, and when one goes."""

from __future__ import annotations

import hashlib
import os

import pytest

from vmfork.errors import ImageCorrupt
from vmfork.image import DiskStore, disks

CONTENT = b"a file system" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def store(tmp_path):
    return DiskStore(tmp_path / "disks")


def add(store, tmp_path, content: bytes = CONTENT) -> str:
    made = tmp_path / "made"
    made.write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    store.add(made, sha256)
    assert not made.exists()
    return sha256


def disk_of(store):
    return store.folder / SHA256 / "disk"


def test_it_is_read_by_its_digest(store, tmp_path):
    add(store, tmp_path)
    with store.opened(SHA256, image="one") as fd:
        assert os.pread(fd, len(CONTENT), 0) == CONTENT
    store.verify(SHA256, image="one")
    assert oct(disk_of(store).stat().st_mode)[-3:] == "400"


def test_one_that_is_missing_names_its_image(store):
    with pytest.raises(ImageCorrupt, match=f"'one'.*its disk {SHA256[:12]} is missing"):
        store.open(SHA256, image="one")
    with pytest.raises(ImageCorrupt, match="is missing"):
        store.hold_for(store.folder.parent, SHA256, image="one")


@pytest.mark.parametrize(
    "content", [b"x" * len(CONTENT), CONTENT[:-1], CONTENT + b"x"], ids=["same size", "less", "more"]
)
def test_another_in_its_place_is_refused(store, tmp_path, content):
    add(store, tmp_path)
    disk_of(store).unlink()
    disk_of(store).write_bytes(content)
    with pytest.raises(ImageCorrupt, match="is another"):
        store.open(SHA256, image="one")


def test_one_that_was_written_to_is_refused(store, tmp_path):
    add(store, tmp_path)
    disk_of(store).chmod(0o600)
    with disk_of(store).open("r+b") as file:
        file.write(b"A")
    with pytest.raises(ImageCorrupt, match="is another"):
        store.open(SHA256, image="one")
    # What is added again takes its place.
    add(store, tmp_path)
    store.verify(SHA256, image="one")


def test_one_that_was_copied_back_is_read_once_and_then_known(store, tmp_path, monkeypatch):
    add(store, tmp_path)
    disk_of(store).unlink()
    disk_of(store).write_bytes(CONTENT)
    store.verify(SHA256, image="one")
    monkeypatch.setattr(disks, "_hash", lambda _fd: pytest.fail("it was read again"))
    with store.opened(SHA256, image="one"):
        pass


def test_it_stays_as_long_as_a_folder_needs_it(store, tmp_path):
    add(store, tmp_path)
    image, template = tmp_path / "image", tmp_path / "template"
    for folder in (image, template):
        folder.mkdir()
        store.hold_for(folder, SHA256, image="one")
    assert store.list_users(SHA256) == [image, template]
    image.rmdir()
    assert (store.find_waste(), store.sweep()) == ([], [])
    template.rmdir()
    assert store.find_waste() == [store.folder / SHA256]
    assert store.sweep() == [store.folder / SHA256]
    assert [path.name for path in store.folder.iterdir()] == ["lock"]


def test_it_stays_as_long_as_anybody_has_it_open(store, tmp_path):
    add(store, tmp_path)
    with store.opened(SHA256, image="one") as fd:
        inherited = os.dup(fd)  # as an emulator has it, which outlives whoever opened it
    assert store.sweep() == []
    os.close(inherited)
    assert store.sweep() == [store.folder / SHA256]


def test_two_hold_it_at_once(store, tmp_path):
    add(store, tmp_path)
    with store.opened(SHA256, image="one"), store.opened(SHA256, image="two"):
        pass


def test_to_add_what_is_there_leaves_it_as_it_is(store, tmp_path):
    add(store, tmp_path)
    before = disk_of(store).stat().st_ino
    add(store, tmp_path)
    assert disk_of(store).stat().st_ino == before


def test_users_that_are_gone_are_forgotten(store, tmp_path):
    add(store, tmp_path)
    for number in range(5):
        folder = tmp_path / str(number)
        folder.mkdir()
        store.hold_for(folder, SHA256, image="one")
        folder.rmdir()
    assert len([*(store.folder / SHA256 / "users").iterdir()]) == 1


def test_what_a_killed_process_left_is_swept_and_strangers_are_not(store, tmp_path):
    add(store, tmp_path)
    (tmp_path / "user").mkdir()
    store.hold_for(tmp_path / "user", SHA256, image="one")
    left, stranger = store.folder / f".staging-{'0' * 16}", store.folder / "mine"
    left.mkdir()
    stranger.mkdir()
    assert store.find_waste() == [left]
    assert store.find_strangers() == [stranger]
    assert store.sweep() == [left]
    assert stranger.is_dir()


@pytest.mark.parametrize("digest", ["../../etc", "", "A" * 64, f"{'a' * 63}/", f"{'a' * 64}/.."])
def test_what_is_no_digest_leads_nowhere(store, tmp_path, digest):
    add(store, tmp_path)
    for use in (
        store.locate,
        lambda it: store.open(it, image="one"),
        lambda it: store.hold_for(tmp_path, it, image="one"),
    ):
        with pytest.raises(ValueError, match="no digest"):
            use(digest)

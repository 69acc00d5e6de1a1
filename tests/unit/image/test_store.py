"""Images on disk: names, damage, replacement, removal, sweep."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from dataclasses import replace

import pytest

from tests.unit.image.samples import DIGEST, make_image
from vmfork.errors import ConfigError, ImageCorrupt, ImageNotFound, StoreBusy
from vmfork.host.lock import FileLock
from vmfork.image.least import write_least
from vmfork.image.record import RECORD_NAME, encode_record
from vmfork.image.staging import discard
from vmfork.image.store import ImageStore

A, B = "a" * 64, "b" * 64


def test_what_was_committed_opens(images_dir, add_image):
    image = add_image()
    assert ImageStore(images_dir).open("one") == image
    assert ImageStore(images_dir).verify("one") == image
    assert image.size_bytes == len(b"kernel") + len(b"initramfs")


def test_the_layout_is_the_one_drawn(images_dir, add_image):
    add_image()
    assert stat.S_IMODE(images_dir.stat().st_mode) == 0o700
    assert sorted(path.name for path in images_dir.iterdir()) == [A, "locks", "names"]
    assert os.readlink(images_dir / "names" / "one") == f"../{A}"
    assert sorted(path.name for path in (images_dir / A).iterdir()) == ["image.json", "initramfs", "kernel"]


def test_an_unknown_name_is_not_found(images_dir, tmp_path):
    for folder in (images_dir, tmp_path / "never made"):
        images = ImageStore(folder)
        for call in (images.open, images.verify, images.remove):
            with pytest.raises(ImageNotFound):
                call("none")
        assert ImageStore(folder).list_images() == []


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 200])
def test_what_is_no_name_is_refused(images_dir, name):
    images = ImageStore(images_dir)
    for call in (images.open, images.verify, images.remove):
        with pytest.raises(ConfigError):
            call(name)


def test_a_name_whose_image_went_is_not_found(images_dir, add_image):
    image = add_image()
    discard(image.kernel.parent)
    with pytest.raises(ImageNotFound):
        ImageStore(images_dir).open("one")


@pytest.mark.parametrize(
    ("path", "content", "want"),
    [
        ("kernel", b"kern", "kernel has 4 bytes, the record says 6"),
        ("initramfs", b"", "initramfs has 0 bytes"),
        ("initramfs", None, "initramfs: No such file"),
        ("image.json", b"{", "not JSON"),
        ("image.json", None, "image.json is missing"),
    ],
)
def test_damage_is_told_by_file(images_dir, add_image, path, content, want):
    target = add_image().kernel.parent / path
    target.unlink() if content is None else target.write_bytes(content)
    with pytest.raises(ImageCorrupt, match=want):
        ImageStore(images_dir).open("one")
    assert ImageStore(images_dir).list_images() == []


def test_only_verify_reads_the_content(images_dir, add_image):
    add_image().kernel.write_bytes(b"KERNEL")
    ImageStore(images_dir).open("one")
    with pytest.raises(ImageCorrupt, match="kernel is not what was built"):
        ImageStore(images_dir).verify("one")


def test_a_folder_under_anothers_digest_is_refused(images_dir, add_image):
    add_image().kernel.parent.rename(images_dir / B)
    ImageStore(images_dir).link("two", B)
    with pytest.raises(ImageCorrupt, match="another image"):
        ImageStore(images_dir).open("two")


def test_an_image_goes_with_its_last_name(images_dir, add_image):
    add_image("one")
    ImageStore(images_dir).link("two", A)
    ImageStore(images_dir).remove("one")
    assert [image.name for image in ImageStore(images_dir).list_images()] == ["two"]
    ImageStore(images_dir).remove("two")
    assert sorted(path.name for path in images_dir.iterdir()) == ["locks", "names"]


def test_a_name_that_moves_on_takes_the_old_image_away(images_dir, add_image):
    add_image("one", A)
    add_image("one", B)
    assert ImageStore(images_dir).open("one").digest == B
    assert not (images_dir / A).exists()


def test_a_damaged_image_can_be_removed(images_dir, add_image):
    (add_image().kernel.parent / "image.json").write_bytes(b"{")
    ImageStore(images_dir).remove("one")
    assert not (images_dir / A).exists()


def test_an_image_that_is_being_built_is_busy(images_dir, add_image):
    add_image()
    with FileLock.try_acquire(ImageStore(images_dir).lock_path(A)), pytest.raises(StoreBusy):
        ImageStore(images_dir).remove("one")
    ImageStore(images_dir).open("one")


def test_what_is_there_already_stays_and_what_was_measured_of_it(images_dir, add_image):
    image = add_image()
    write_least(image.kernel.parent, 200, measured="by a test")
    add_image()
    assert ImageStore(images_dir).verify("one").min_memory_mib == 200
    assert sorted(path.name for path in images_dir.iterdir()) == [A, "locks", "names"]


@pytest.mark.parametrize("damage", [b"KERNEL", b"", None], ids=["content", "size", "gone"])
def test_a_damaged_image_is_replaced(images_dir, add_image, damage):
    kernel = add_image().kernel
    kernel.unlink() if damage is None else kernel.write_bytes(damage)
    image = add_image()
    assert ImageStore(images_dir).verify("one") == image
    assert sorted(path.name for path in images_dir.iterdir()) == [A, "locks", "names"]


def test_the_image_of_a_recipe_is_found_unless_it_is_damaged(images_dir, add_image):
    image = add_image()
    store = ImageStore(images_dir)
    assert store.find_made_of(image.recipe, name="one") == image
    assert store.find_made_of("d" * 64, name="one") is None
    image.kernel.write_bytes(b"")
    assert store.find_made_of(image.recipe, name="one") is None


def test_a_staging_folder_goes_with_its_block_even_when_it_fails(images_dir):
    class BuildError(Exception):
        pass

    with pytest.raises(BuildError), ImageStore(images_dir).staging() as folder:
        (folder / "read-only").mkdir(mode=0o500)
        raise BuildError
    assert sorted(path.name for path in images_dir.iterdir()) == ["locks", "names"]


def test_a_sweep_takes_what_crashed_and_leaves_what_lives(images_dir):
    dead = images_dir / ".staging-00000000deadbeef"
    (dead / "tmp").mkdir(parents=True)
    (images_dir / ".staging-00000000deadbeef.lock").touch()
    with ImageStore(images_dir).staging() as alive:
        assert ImageStore(images_dir).sweep() == [dead]
        assert alive.is_dir()
        assert not dead.exists()
    assert sorted(path.name for path in images_dir.iterdir()) == ["locks", "names"]
    assert ImageStore(images_dir).sweep() == []


def test_a_sweep_takes_a_lock_whose_folder_was_never_made(images_dir):
    (images_dir / ".staging-00000000deadbeef.lock").touch()
    assert ImageStore(images_dir).sweep() == []
    assert sorted(path.name for path in images_dir.iterdir()) == ["locks", "names"]


def test_a_sweep_leaves_what_only_looks_like_a_build(images_dir):
    theirs = images_dir / ".staging-mine"
    theirs.mkdir()
    ImageStore(images_dir).sweep()
    assert theirs.is_dir()


def test_a_sweep_that_cannot_see_what_names_lead_to_takes_nothing(images_dir, add_image, monkeypatch):
    add_image("one", A)

    def refuse(*_args, **_options):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "readlink", refuse)
        with pytest.raises(OSError, match="Input/output error"):
            ImageStore(images_dir).sweep()
    assert (images_dir / A).is_dir()


def test_a_sweep_takes_an_image_that_a_crash_left_without_a_name(images_dir, add_image):
    add_image("one", A)
    add_image("two", B)
    (images_dir / "names" / "two").unlink()
    with FileLock.try_acquire(ImageStore(images_dir).lock_path(B)):
        ImageStore(images_dir).sweep()
        assert (images_dir / B).is_dir()  # whoever builds it gives it its name yet
    ImageStore(images_dir).sweep()
    assert sorted(path.name for path in images_dir.iterdir()) == [A, "locks", "names"]


def test_an_image_whose_disk_is_missing_or_cut_off_is_damaged(images_dir, tmp_path):
    content = b"a file system"
    sha256, store = hashlib.sha256(content).hexdigest(), ImageStore(images_dir)
    with store.staging() as folder:
        built = folder / "image"
        built.mkdir()
        (built / "kernel").write_bytes(b"kernel")
        (built / "initramfs").write_bytes(b"initramfs")
        image = replace(make_image(images_dir / DIGEST), disk_sha256=sha256, disk_bytes=len(content))
        (built / RECORD_NAME).write_bytes(encode_record(image))
        store.commit(built, DIGEST)
    store.link("one", DIGEST)
    with pytest.raises(ImageCorrupt, match="disk"):
        store.open("one")
    (tmp_path / "made").write_bytes(content)
    store.disks.add(tmp_path / "made", sha256)
    assert store.verify("one").root_kind == "disk"
    store.disks.locate(sha256).chmod(0o600)
    store.disks.locate(sha256).write_bytes(content[:-1])
    with pytest.raises(ImageCorrupt, match="disk has 12 bytes"):
        store.open("one")

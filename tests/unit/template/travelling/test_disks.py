"""The disks of a template come with it: whole or not at all, once however many want them. Without machines."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.registry import running_registry
from tests.unit.template.disks import SCRATCH_MIB, add_disk, empty_image, find_disk_fields, list_disks
from tests.unit.template.sparse import find_traits
from tests.unit.travel.artifacts import Parts, changed, name_of
from vmfork.aio import Template
from vmfork.errors import ArtifactError, HostError, ImageCorrupt, TemplateCorrupt
from vmfork.host.tmpfs import mount_tmpfs, unmount
from vmfork.host.zstd import compress
from vmfork.image import DiskStore
from vmfork.machine.traits import DISK, SCRATCH
from vmfork.oci.layout import Layout
from vmfork.store import TemplateStore
from vmfork.travel.files import SPAN

pytestmark = pytest.mark.needs("qemu")

MIB = 1 << 20


@pytest.fixture
async def template(build, places) -> Template:
    """One whose root is on a disk of several pieces, and that has a disk of its own."""
    return await build(**await find_disk_fields(places, os.urandom(SPAN) + b"root" * 1000))


@pytest.fixture
async def saved(template, tmp_path) -> Path:
    await template.save(tmp_path / "py.tar")
    return tmp_path / "py.tar"


def disks_of(template: Template) -> set[str]:
    return {template.manifest.traits[DISK], template.manifest.disk_sha256}


async def test_they_are_there_and_stay_as_long_as_the_template(template, saved, other) -> None:
    loaded = await Template.load(saved, places=other)
    store = DiskStore(other.disks)
    assert list_disks(other) == disks_of(template)
    for sha256 in disks_of(template):
        store.verify(sha256, image="any")
        assert store.list_users(sha256) == [other.templates / "py" / loaded.generation]
    assert store.sweep() == []
    await loaded.remove()
    assert list_disks(other) == set()


async def test_what_is_there_is_not_read_again(saved, other, monkeypatch) -> None:
    await Template.load(saved, places=other)
    read: list[str] = []
    whole = Layout.read
    monkeypatch.setattr(Layout, "read", lambda self, each: read.append(each.media_type) or whole(self, each))
    await Template.load(saved, "again", places=other)
    assert read
    assert not [kind for kind in read if ".disk." in kind]


async def test_of_several_that_want_them_at_once_one_fetches_them(saved, other, monkeypatch) -> None:
    read: list[str] = []
    whole = Layout.read
    monkeypatch.setattr(Layout, "read", lambda self, each: read.append(each.digest) or whole(self, each))
    names = ("one", "two", "three")
    await asyncio.gather(*(Template.load(saved, name, places=other) for name in names))
    assert len([each for each in set(read) if read.count(each) == 1]) == 3  # two pieces of the root, and the other
    for name in names:
        await (await Template.open(name, places=other)).verify()


async def test_a_piece_that_is_missing_swapped_or_another_leaves_nothing(saved, other, tmp_path) -> None:
    def one_is_missing(parts):
        del parts.files[name_of(parts.config["disks"][0]["layers"][1]["digest"])]

    def in_another_order(parts):
        layers = parts.config["disks"][0]["layers"]
        layers.reverse()
        sent = parts.manifest["layers"]
        sent[-3], sent[-2] = sent[-2], sent[-3]

    def another_content(parts):
        layer = parts.config["disks"][1]["layers"][0]
        data = compress(bytes(layer["raw_bytes"]))
        layer |= {"digest": parts.add(data), "size_bytes": len(data)}
        parts.manifest["layers"][-1] |= {"digest": layer["digest"], "size": len(data)}

    def one_disk_less(parts):
        del parts.config["disks"][1], parts.manifest["layers"][-1]

    def larger_than_it_says(parts):
        parts.config["disks"][1]["layers"][0]["raw_bytes"] -= 1
        parts.config["disks"][1]["size_bytes"] -= 1

    def larger_than_any(parts):
        parts.config["disks"][1]["layers"][0]["raw_bytes"] = SPAN + 1
        parts.config["disks"][1]["size_bytes"] = SPAN + 1

    def no_digest(parts):
        parts.config["disks"][0]["sha256"] = parts.config["manifest"]["traits"][DISK] = "../../etc"

    changes = (
        one_is_missing, in_another_order, another_content, one_disk_less, larger_than_it_says, larger_than_any,
        no_digest,
    )  # fmt: skip
    for change in changes:
        with pytest.raises(ArtifactError):
            await Template.load(changed(saved, tmp_path / change.__name__, change), places=other)
        assert list_disks(other) - disks_of_saved(saved) == set(), change.__name__
        assert TemplateStore(other.templates).list_names() == [], change.__name__
        DiskStore(other.disks).sweep()
        assert list_disks(other) == set(), change.__name__


def disks_of_saved(path: Path) -> set[str]:
    return {disk["sha256"] for disk in Parts(path).config["disks"]}


async def test_one_that_was_saved_without_them_is_refused_by_name(saved, other, tmp_path) -> None:
    def without(parts):
        count = sum(len(disk["layers"]) for disk in parts.config.pop("disks"))
        del parts.manifest["layers"][-count:]
        parts.config["format"] = 1

    with pytest.raises(ArtifactError, match="disks that were not sent with it"):
        await Template.load(changed(saved, tmp_path / "without", without), places=other)
    assert list_disks(other) == set()


async def test_a_template_without_disks_is_of_the_former_format(build, tmp_path) -> None:
    await (await build("plain")).save(tmp_path / "plain.tar")
    assert Parts(tmp_path / "plain.tar").config["format"] == 1


async def test_a_disk_that_is_missing_or_another_is_not_sent(template, places, tmp_path) -> None:
    disk = places.disks / template.manifest.disk_sha256 / "disk"
    disk.chmod(0o600)
    with disk.open("r+b") as file:
        file.write(b"another")
    with pytest.raises((TemplateCorrupt, ImageCorrupt), match="is another"):
        await template.save(tmp_path / "py.tar")
    disk.unlink()
    with pytest.raises(ImageCorrupt, match="is missing"):
        await template.save(tmp_path / "py.tar")
    assert [path for path in tmp_path.iterdir() if path.is_file()] == []


async def test_an_image_that_names_other_files_is_never_opened(build, places, other, tmp_path) -> None:
    """QEMU would open what it names: the header says where a backing file's name is."""
    image = bytearray(empty_image())
    image[8:16], image[16:20] = (512).to_bytes(8, "big"), (11).to_bytes(4, "big")
    image[512:523] = b"/etc/shadow"
    scratch = add_disk(places, bytes(image))
    traits = {**await find_traits(), SCRATCH: str(SCRATCH_MIB)}
    await (await build(traits=traits, disk_mib=SCRATCH_MIB, disk_sha256=scratch, format=4)).save(tmp_path / "py.tar")
    loaded = await Template.load(tmp_path / "py.tar", places=other)
    with pytest.raises(TemplateCorrupt, match="disk: it names other files"):
        await loaded.fork()


@pytest.mark.needs("root")
async def test_a_host_without_space_for_them_is_told_before_they_are_read(saved, other) -> None:
    other.disks.mkdir(parents=True)
    assert mount_tmpfs(other.disks, size_bytes=MIB)
    try:
        with pytest.raises(HostError, match="no space for a disk") as error:
            await Template.load(saved, places=other)
        assert "VMFORK_HOME" in error.value.hint
        assert TemplateStore(other.templates).list_names() == []
        assert list_disks(other) == set()
    finally:
        unmount(other.disks)


@pytest.mark.needs("root")
async def test_a_disk_that_becomes_full_meanwhile_leaves_nothing(saved, other, monkeypatch) -> None:
    monkeypatch.setattr("vmfork.template.travelling.disks._check_space", lambda _folder, _file: None)
    other.disks.mkdir(parents=True)
    assert mount_tmpfs(other.disks, size_bytes=4 * MIB)
    try:
        with pytest.raises((HostError, OSError), match="No space left"):
            await Template.load(saved, places=other)
        assert TemplateStore(other.templates).list_names() == []
        assert list_disks(other) == set()
    finally:
        unmount(other.disks)


@pytest.mark.needs("docker-registry", "oras")
async def test_by_a_registry_they_are_sent_once(template, other, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with running_registry(tmp_path / "registry") as registry:
        pushed = await template.push(f"{registry.host}/team/py:1")
        again = await template.push(f"{registry.host}/team/py:2")
        assert pushed.sent_bytes > SPAN
        assert again.sent_bytes == 0
        await Template.pull(f"{registry.host}/team/py:1", places=other)
    assert list_disks(other) == disks_of(template)

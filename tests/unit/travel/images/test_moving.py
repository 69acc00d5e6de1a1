"""An image is saved and loaded whole or not at all, by a file and by a real registry. Without machines."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
from dataclasses import replace

import pytest

from tests.children import exit_code_of, fork_child
from tests.registry import HTPASSWD, PASSWORD, USER, keep_repositories, lines_to, running_registry
from tests.unit.travel.artifacts import changed, digest_of, name_of, read_tar, write_folder
from vmfork.aio import Image
from vmfork.config import Instance
from vmfork.errors import ArtifactError, ConfigError, HostError, ImageCorrupt, ImageExists, ImageNotFound
from vmfork.host.tmpfs import mount_tmpfs, unmount
from vmfork.host.zstd import compress
from vmfork.image import ImageStore
from vmfork.oci.layout import Layout
from vmfork.travel.images import moving
from vmfork.travel.images.artifact import FILE_TYPE, KIND, TYPE, ImageArtifact
from vmfork.travel.images.moving import Target, load_image, pull_image, push_image, save_image


@pytest.fixture
def saved(add_image, here, tmp_path):
    add_image()
    asyncio.run(save_image("py", tmp_path / "py.tar", instance=here))
    return tmp_path / "py.tar"


def nothing_is_there(instance: Instance) -> bool:
    """No image, no name, nothing on its way. Locks stay."""
    folder = instance.places.images
    found = [path for path in folder.iterdir() if path.name not in ("names", "locks")] if folder.exists() else []
    return ImageStore(folder).list_images() == [] and found == [] and not [*folder.glob("names/*")]


async def test_it_is_the_same_on_another_instance(add_image, here, there, tmp_path) -> None:
    image = add_image()
    saved = await save_image("py", tmp_path / "py.tar", instance=here)
    loaded = await load_image(tmp_path / "py.tar", Target(instance=there))
    assert replace(loaded, kernel=image.kernel, initramfs=image.initramfs) == image
    assert loaded.initramfs.read_bytes() == image.initramfs.read_bytes()
    ImageStore(there.places.images).verify("py")
    assert 0 < saved.size_bytes < image.size_bytes
    assert (tmp_path / "py.tar").stat().st_mode & 0o777 == 0o600
    again = await save_image("py", tmp_path / "again.tar", instance=there)
    assert again.digest == saved.digest
    assert (tmp_path / "again.tar").read_bytes() == (tmp_path / "py.tar").read_bytes()


async def test_what_was_imported_is_not_called_default(add_image, here, there, tmp_path) -> None:
    """That one's kernel and packages are what all others are made with."""
    for seed, (name, source) in enumerate((("py", ""), ("app", "oci:app"))):
        image = add_image(name, seed=seed, source=source)
        await save_image(image.name, tmp_path / f"{name}.tar", instance=here)
    with pytest.raises(ConfigError, match="built of packages"):
        await load_image(tmp_path / "app.tar", Target(instance=there, name="default", replace_it=True))
    assert nothing_is_there(there)
    assert (await load_image(tmp_path / "py.tar", Target(instance=there, name="default"))).name == "default"


async def test_its_disk_goes_along_and_is_held_there(add_image, here, there, tmp_path) -> None:
    content = b"disk" * (5 << 20)
    image = add_image(disk=content)
    await save_image("py", tmp_path / "py.tar", instance=here)
    loaded = await load_image(tmp_path / "py.tar", Target(instance=there))
    store = ImageStore(there.places.images)
    store.verify("py")
    assert (loaded.disk_sha256, loaded.digest) == (image.disk_sha256, image.digest)
    assert store.disks.sweep() == []
    place = there.places.disks / image.disk_sha256 / "disk"
    assert place.read_bytes() == content
    place.chmod(0o600)
    place.write_bytes(b"other")
    await load_image(tmp_path / "py.tar", Target(instance=there))
    assert place.read_bytes() == content
    store.remove("py")
    assert not place.exists()


async def test_what_is_built_of_its_recipe_is_found(saved, there) -> None:
    loaded = await load_image(saved, Target(instance=there, name="other"))
    assert ImageStore(there.places.images).find_made_of(loaded.recipe, name="py").digest == loaded.digest


async def test_the_name_is_not_taken_from_another_without_being_asked(saved, add_image, here, there) -> None:
    first = await load_image(saved, Target(instance=there))
    assert (await load_image(saved, Target(instance=there))).digest == first.digest
    add_image("py", seed=2)
    with pytest.raises(ImageExists) as error:
        await load_image(saved, Target(instance=here))
    assert "replace" in error.value.hint
    assert ImageStore(here.places.images).open("py").digest != first.digest
    assert (await load_image(saved, Target(instance=here, replace_it=True))).digest == first.digest


async def test_what_is_here_is_not_read(saved, there, monkeypatch) -> None:
    await load_image(saved, Target(instance=there))
    monkeypatch.setattr(moving, "unpack", lambda *_args, **_options: pytest.fail("it was read"))
    assert (await load_image(saved, Target(instance=there, name="second"))).name == "second"


async def test_one_that_is_damaged_here_is_mended_by_what_is_loaded(saved, there) -> None:
    image = await load_image(saved, Target(instance=there))
    with image.initramfs.open("r+b") as file:
        file.write(b"other")
    await load_image(saved, Target(instance=there))
    ImageStore(there.places.images).verify("py")


async def test_what_is_saved_is_what_was_built(add_image, here, tmp_path) -> None:
    image = add_image()
    with image.initramfs.open("r+b") as file:
        file.write(b"other")
    (tmp_path / "py.tar").write_bytes(b"former")
    with pytest.raises(ImageCorrupt, match="initramfs"):
        await save_image("py", tmp_path / "py.tar", instance=here)
    assert (tmp_path / "py.tar").read_bytes() == b"former"
    with pytest.raises(ImageNotFound):
        await save_image("none", tmp_path / "none.tar", instance=here)


async def test_a_byte_that_changed_or_went_in_any_part_is_found(saved, there, tmp_path) -> None:
    files = read_tar(saved)
    for number, (name, data) in enumerate(files.items()):
        if name == "oci-layout":
            continue  # says nothing that is needed
        at = len(data) // 2
        for kind, other in {"flip": data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], "cut": data[:at]}.items():
            folder = write_folder(tmp_path / f"{number}-{kind}", files | {name: other})
            with pytest.raises(ArtifactError):
                await load_image(folder, Target(instance=there))
            assert nothing_is_there(there), name


def _claim(**fields):
    return lambda parts: parts.config["record"].update(fields)


def _swap_layers(parts) -> None:
    layers = parts.config["files"][1]["layers"]
    layers[0], layers[-1] = layers[-1], layers[0]
    names = parts.manifest["layers"]
    names[1], names[-1] = names[-1], names[1]


def _make_huge(parts) -> None:
    data = compress(bytes(17 << 20))
    layer = parts.config["files"][0]["layers"][0]
    layer.update(digest=parts.add(data), size_bytes=len(data), raw_bytes=17 << 20)
    parts.manifest["layers"][0].update(digest=layer["digest"], size=len(data))


def _make_bomb(parts) -> None:
    """It says that it is as large as the one before it."""
    data = compress(bytes(64 << 20))
    layer = parts.config["files"][0]["layers"][0]
    layer.update(digest=parts.add(data), size_bytes=len(data))
    parts.manifest["layers"][0].update(digest=layer["digest"], size=len(data))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_claim(arch="riscv64"), "riscv64"),
        (_claim(digest="b" * 64), "another digest"),
        (_claim(digest="../../etc"), "another digest"),
        (_claim(recipe="../x"), "recipe"),
        (_claim(kernel_release="6.12 init=/bin/sh"), "kernel"),
        (_claim(suite="a b"), "suite"),
        (_claim(format=99), "record.format is 99"),
        (_claim(kernel_bytes=1), "files are not"),
        (lambda parts: parts.config.update(format=2), "format is 2"),
        (lambda parts: parts.config.update(name="../py"), "not a name"),
        (lambda parts: parts.config["files"][0].update(name="../kernel"), "files are not"),
        (lambda parts: parts.config["files"].pop(), "other layers"),
        (lambda parts: parts.manifest["layers"].reverse(), "another order"),
        (lambda parts: parts.manifest.update(artifactType="application/vnd.vmfork.image.v2"), "an image of format 2"),
        (lambda parts: parts.manifest.update(artifactType="application/vnd.vmfork.template.v1"), "no image"),
        (_swap_layers, "together are not"),
        (_make_huge, "larger than any"),
        (_make_bomb, "not one zstd frame"),
    ],
)
async def test_one_that_nobody_made_is_refused_by_what_is_wrong(saved, there, tmp_path, change, told) -> None:
    folder = changed(saved, tmp_path / "changed", change)
    with pytest.raises(ArtifactError) as error:
        await load_image(folder, Target(instance=there))
    assert told in str(error.value)
    assert error.value.hint
    assert nothing_is_there(there)


def test_its_form_is_the_one_that_is_told(saved) -> None:
    files = read_tar(saved)
    index = json.loads(files["index.json"])
    manifest = json.loads(files[name_of(index["manifests"][0]["digest"])])
    assert (manifest["artifactType"], {each["mediaType"] for each in manifest["layers"]}) == (TYPE, {FILE_TYPE})
    config = json.loads(files[name_of(manifest["config"]["digest"])])
    assert [file["name"] for file in config["files"]] == ["kernel", "initramfs"]
    assert [each["raw_bytes"] >> 20 for each in config["files"][1]["layers"]] == [16, 16, 1]
    for name, data in files.items():
        assert not name.startswith("blobs/") or name_of(digest_of(data)) == name


class _DiesAt:
    """Content, of which reading the n-th piece ends this process."""

    def __init__(self, layout: Layout, number: int) -> None:
        self._layout = layout
        self._left = number

    def read(self, descriptor):
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), signal.SIGKILL)
        return self._layout.read(descriptor)


def test_a_load_that_is_killed_is_swept(saved, there) -> None:
    with Layout.open(saved) as layout:
        found = KIND.read_layout(ImageArtifact, layout)

    def load_and_die(number: int) -> None:
        async def load() -> None:
            with Layout.open(saved) as layout:
                await moving._take_in(found, _DiesAt(layout, number), Target(instance=there), source="it")

        asyncio.run(load())

    for number in range(1, len(found.layers) + 1):
        assert exit_code_of(fork_child(lambda number=number: load_and_die(number))) == -signal.SIGKILL
        store = ImageStore(there.places.images)
        assert len(store.sweep()) == 1
        assert nothing_is_there(there)
    asyncio.run(load_image(saved, Target(instance=there)))


async def test_a_layout_of_no_image_or_of_several_is_refused(saved, there, tmp_path) -> None:
    files = read_tar(saved)
    index = json.loads(files["index.json"])
    for count in (0, 2):
        changed_index = json.dumps(index | {"manifests": index["manifests"] * count}).encode()
        folder = write_folder(tmp_path / str(count), files | {"index.json": changed_index})
        with pytest.raises(ArtifactError, match=f"{count} manifests, where one of an image"):
            await load_image(folder, Target(instance=there))


@pytest.mark.parametrize("what", ["save", "load"])
async def test_when_it_is_cancelled_nothing_is_left(add_image, here, there, tmp_path, what) -> None:
    add_image()
    await save_image("py", tmp_path / "py.tar", instance=here)
    out = tmp_path / "out"
    out.mkdir()

    def cancel(_event) -> None:
        task.cancel()

    work = (
        save_image("py", out / "py.tar", instance=Instance(here.places, cancel))
        if what == "save"
        else load_image(tmp_path / "py.tar", Target(instance=Instance(there.places, cancel)))
    )
    task = asyncio.ensure_future(work)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [*out.iterdir()] == []
    assert nothing_is_there(there)


@pytest.mark.needs("root")
async def test_a_disk_that_is_too_small_is_told(saved, here, there, tmp_path) -> None:
    small = tmp_path / "other-home"
    small.mkdir()
    assert mount_tmpfs(small, size_bytes=1 << 20)
    try:
        with pytest.raises(HostError, match="no space for the image") as error:
            await load_image(saved, Target(instance=there))
        assert error.value.hint
        assert nothing_is_there(there)
        with pytest.raises(OSError, match="No space left"):
            await save_image("py", small / "py.tar", instance=here)
        assert [path.name for path in small.iterdir()] == ["images"]
    finally:
        unmount(small)


async def test_progress_ends_at_the_whole(add_image, here, there, tmp_path) -> None:
    add_image()
    told = []
    await save_image("py", tmp_path / "py.tar", instance=Instance(here.places, told.append))
    await load_image(tmp_path / "py.tar", Target(instance=Instance(there.places, told.append)))
    assert [(each.task, each.fraction) for each in told if each.fraction == 1] == [("image", 1.0)] * 2


async def test_where_nothing_is_that_is_told(there, tmp_path) -> None:
    with pytest.raises(ConfigError) as error:
        await load_image(tmp_path / "none", Target(instance=there))
    assert "image save" in error.value.hint


async def test_it_goes_by_the_public_names(add_image, here, there, tmp_path) -> None:
    image = add_image()
    saved = await (await Image.open("py", places=here.places)).save(tmp_path / "py.tar")
    loaded = await Image.load(tmp_path / "py.tar", "copy", places=there.places)
    assert (loaded.name, loaded.digest) == ("copy", image.digest)
    assert saved.digest.startswith("sha256:")
    add_image("copy", seed=2)
    with pytest.raises(ImageExists):
        await Image.load(tmp_path / "py.tar", "copy", places=here.places)
    assert (await Image.load(tmp_path / "py.tar", "copy", replace=True, places=here.places)).digest == image.digest
    for work in (loaded.push("none"), Image.pull("none", places=there.places)):
        with pytest.raises(ConfigError, match="ref"):
            await work


# By a registry.


@pytest.fixture
def registry(tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "config.json").write_text("{}")
    with running_registry(tmp_path / "registry") as running:
        yield running


pushed_and_pulled = pytest.mark.needs("docker-registry", "oras")


@pushed_and_pulled
async def test_pushed_and_pulled_elsewhere_it_is_the_same(add_image, here, there, registry) -> None:
    image = add_image()
    ref = f"{registry.host}/team/py:1"
    pushed = await push_image("py", ref, plain_http=False, instance=here)
    assert pushed.sent_bytes > pushed.size_bytes > 0
    again = await push_image("py", f"{registry.host}/team/py:2", plain_http=False, instance=here)
    assert (again.digest, again.sent_bytes) == (pushed.digest, 0)
    pulled = await pull_image(ref, Target(instance=there))
    assert (pulled.digest, pulled.initramfs.read_bytes()) == (image.digest, image.initramfs.read_bytes())
    by_digest = await pull_image(f"{registry.host}/team/py@{pushed.digest}", Target(instance=there, name="again"))
    assert by_digest.digest == image.digest


@pushed_and_pulled
async def test_no_connection_is_left(add_image, here, there, registry, monkeypatch) -> None:
    add_image()
    made = keep_repositories(monkeypatch)
    ref = f"{registry.host}/team/py:1"
    await push_image("py", ref, plain_http=False, instance=here)
    await pull_image(ref, Target(instance=there))
    with pytest.raises(ArtifactError):
        await pull_image(f"{registry.host}/team/py:none", Target(instance=there))
    assert len(made) == 3
    assert lines_to(registry.host) == []


@pushed_and_pulled
async def test_two_that_pull_one_name_both_have_it(add_image, here, there, registry) -> None:
    image = add_image()
    ref = f"{registry.host}/team/py:1"
    await push_image("py", ref, plain_http=False, instance=here)
    found = await asyncio.gather(*(pull_image(ref, Target(instance=there)) for _ in range(2)))
    assert [each.digest for each in found] == [image.digest] * 2
    ImageStore(there.places.images).verify("py")


@pushed_and_pulled
async def test_a_layer_that_was_changed_or_a_registry_that_ended_leaves_nothing(
    add_image, here, there, registry
) -> None:
    add_image()
    ref = f"{registry.host}/team/py:1"
    await push_image("py", ref, plain_http=False, instance=here)
    for path in registry.blobs:
        data = path.read_bytes()
        if not data.startswith(b"{"):
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ArtifactError):
        await pull_image(ref, Target(instance=there))
    assert nothing_is_there(there)
    with pytest.raises(ArtifactError, match="has no manifests/none"):
        await pull_image(f"{registry.host}/team/py:none", Target(instance=there))
    registry.kill()
    for work in (pull_image(ref, Target(instance=there)), push_image("py", ref, plain_http=False, instance=here)):
        with pytest.raises(HostError, match="cannot be reached"):
            await work
    assert nothing_is_there(there)


@pushed_and_pulled
async def test_a_registry_that_is_killed_within_a_push_has_no_image_and_is_pushed_to_again(
    add_image, here, there, registry, monkeypatch
) -> None:
    image = add_image()
    with monkeypatch.context() as patch:
        registry.kill_behind(patch, "put", FILE_TYPE)
        with pytest.raises(HostError, match="cannot be reached") as error:
            await push_image("py", f"{registry.host}/team/py:1", plain_http=False, instance=here)
    assert error.value.hint
    assert lines_to(registry.host) == []
    with running_registry(registry.folder) as again:  # with what arrived
        assert again.blobs
        with pytest.raises(ArtifactError, match="has no manifests/1"):
            await pull_image(f"{again.host}/team/py:1", Target(instance=there))
        await push_image("py", f"{again.host}/team/py:1", plain_http=False, instance=here)
        assert (await pull_image(f"{again.host}/team/py:1", Target(instance=there))).digest == image.digest


@pushed_and_pulled
async def test_a_registry_that_is_killed_within_a_pull_leaves_nothing(
    add_image, here, there, registry, monkeypatch
) -> None:
    add_image()
    ref = f"{registry.host}/team/py:1"
    await push_image("py", ref, plain_http=False, instance=here)
    registry.kill_behind(monkeypatch, "read", FILE_TYPE)
    with pytest.raises(HostError, match="cannot be reached") as error:
        await pull_image(ref, Target(instance=there))
    assert error.value.hint
    assert nothing_is_there(there)
    assert lines_to(registry.host) == []


@pushed_and_pulled
async def test_with_a_password(add_image, here, there, registry, tmp_path) -> None:
    add_image()
    with running_registry(tmp_path / "closed", htpasswd=HTPASSWD) as closed:
        ref = f"{closed.host}/team/py:1"
        with pytest.raises(HostError) as error:
            await push_image("py", ref, plain_http=False, instance=here)
        assert "docker login" in error.value.hint
        token = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        (tmp_path / "docker" / "config.json").write_text(json.dumps({"auths": {closed.host: {"auth": token}}}))
        await push_image("py", ref, plain_http=False, instance=here)
        assert (await pull_image(ref, Target(instance=there))).name == "py"


async def test_what_names_nothing_in_a_registry_is_refused(add_image, here, there) -> None:
    add_image()
    for ref in ("", "py", "./py.tar", "/tmp/py", "oci:dir:1", "host.example/Py"):
        for work in (push_image("py", ref, plain_http=False, instance=here), pull_image(ref, Target(instance=there))):
            with pytest.raises(ConfigError) as error:
                await work
            assert error.value.field == "ref"
    with pytest.raises(ConfigError, match="has the digest"):
        await push_image("py", f"host.example/py@sha256:{'0' * 64}", plain_http=False, instance=here)

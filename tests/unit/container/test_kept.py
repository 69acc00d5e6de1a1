"""What an image is said to be made `from` is imported once, and again where it has changed."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace

import pytest

from tests.images import LayoutWriter, Member, make_layer, put_image, save_archive, write_image
from tests.registry import running_registry
from tests.unit.container.conftest import LAYERS, files_of
from vmfork.container import kept
from vmfork.container.kept import ensure_imported, name_source
from vmfork.errors import ArtifactError, ConfigError, ImageNotFound


@pytest.fixture
def imports(monkeypatch) -> list[str]:
    """The sources that were imported, in order."""
    told: list[str] = []
    import_image = kept.import_image

    async def counted(source, name, **more):
        told.append(source)
        return await import_image(source, name, **more)

    monkeypatch.setattr(kept, "import_image", counted)
    return told


@pytest.fixture
def ensure(store, kernel, imports):
    async def ensure(source: str, **more: object):
        return await ensure_imported(source, "it", **({"kernel": kernel, "store": store} | more))

    return ensure


async def test_a_layout_is_imported_once_and_again_when_its_tag_leads_elsewhere(ensure, imports, store, tmp_path):
    source = f"oci:{write_image(tmp_path / 'in', LAYERS)}:latest"
    first = await ensure(source)
    assert (await ensure(source), len(imports)) == (first, 1)
    layout = LayoutWriter(tmp_path / "in")
    layout.add_image([make_layer([Member("etc/a", body=b"newer")])])
    second = await ensure(source)
    assert files_of(second)["etc/a"] == b"newer"
    assert store.open("it").digest == second.digest != first.digest
    assert len(imports) == 2


async def test_a_folder_is_imported_again_when_a_file_was_written_with_the_same_size(ensure, imports, tmp_path):
    (tmp_path / "root").mkdir()
    file = tmp_path / "root/a"
    file.write_bytes(b"one")
    await ensure(f"dir:{tmp_path / 'root'}")
    await ensure(f"dir:{tmp_path / 'root'}")
    assert len(imports) == 1
    times = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert files_of(await ensure(f"dir:{tmp_path / 'root'}"))["a"] == b"two"


async def test_an_archive_is_imported_again_when_it_has_another_image(ensure, imports, tmp_path):
    path = tmp_path / "saved.tar"
    save_archive(path, LAYERS)
    await ensure(f"docker-archive:{path}")
    await ensure(f"docker-archive:{path}:1")
    assert len(imports) == 1
    save_archive(path, [[Member("b", body=b"b")]])
    assert files_of(await ensure(f"docker-archive:{path}:1"))["b"] == b"b"


async def test_another_kernel_is_another_image_and_a_lost_one_is_made_again(ensure, imports, store, kernel, tmp_path):
    source = f"oci:{write_image(tmp_path / 'in', LAYERS)}"
    await ensure(source)
    await ensure(source, kernel=replace(kernel, kernel_sha256="another"))
    assert len(imports) == 2
    store.remove("it")
    await ensure(source)
    assert len(imports) == 3


async def test_two_that_want_the_same_import_it_once(ensure, imports, tmp_path):
    source = f"oci:{write_image(tmp_path / 'in', LAYERS)}"
    first, second = await asyncio.gather(ensure(source), ensure(source))
    assert first == second
    assert len(imports) == 1


async def test_what_cannot_be_imported_leaves_the_former_image(ensure, store, tmp_path):
    source = f"oci:{write_image(tmp_path / 'in', LAYERS)}:latest"
    first = await ensure(source)
    layout = LayoutWriter(tmp_path / "in")
    layout.add_image([make_layer([Member("../x")])])
    with pytest.raises(ArtifactError):
        await ensure(source)
    assert store.open("it") == first
    with pytest.raises(ConfigError):
        await ensure("nonsense")
    with pytest.raises(ImageNotFound):
        store.open("other")


@pytest.mark.needs("docker-registry", "oras")
async def test_a_registry_is_asked_once_and_when_it_is_told_to(ensure, imports, tmp_path):
    def made(body: bytes) -> LayoutWriter:
        layout = LayoutWriter(tmp_path / body.decode())
        layout.add_image([make_layer([Member("etc/a", body=body)])])
        return layout

    with running_registry(tmp_path / "registry") as registry:
        reference = f"{registry.host}/team/app:1"
        put_image(made(b"one"), reference)
        first = await ensure(reference)
        put_image(made(b"two"), reference)
        assert (await ensure(reference), len(imports)) == (first, 1)
        for _ in range(2):  # another name for what is here
            put_image(made(b"one"), f"{registry.host}/team/app:latest")
            await ensure(f"{registry.host}/team/app:latest")
            await ensure(reference)
        assert len(imports) == 2
        imports.clear()
        assert files_of(await ensure(reference, again=True))["etc/a"] == b"two"
    assert len(imports) == 1
    assert (await ensure(reference)).sources == (reference,)  # nobody listens there now, and nobody is asked


def test_an_image_without_a_name_is_called_by_its_source():
    names = {name_source(text): text for text in ("registry.example/team/py:1", "registry.example/team/py:2")}
    assert len(names) == 2
    assert all(name.startswith("py.from-") for name in names)
    assert name_source("oci:/a/lay out:latest").startswith("lay-out.from-")
    assert name_source("dir:/").startswith("image.from-")
    assert name_source(f"registry.example/{'x' * 200}@sha256:{'0' * 64}").startswith("xxxx")
    with pytest.raises(ConfigError):
        name_source("python:3.13")

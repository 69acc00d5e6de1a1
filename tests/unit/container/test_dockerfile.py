"""What buildah makes of a Dockerfile and skopeo fetches is imported; where they are missing, or fail, that is told."""

from __future__ import annotations

import shutil
import subprocess
from functools import partial

import pytest

from tests.rules.capabilities import find_static_busybox
from tests.unit.container.conftest import files_of
from vmfork.aio import Image
from vmfork.config import ImageConfig, Places
from vmfork.container.dockerfile import build_dockerfile
from vmfork.container.limits import ImportLimits
from vmfork.errors import ArtifactError, ConfigError, HostError, ImageNotFound

DOCKERFILE = """
FROM scratch
ARG WHO=nobody
COPY box /bin/sh
RUN echo built for $WHO > /built
ENV GREETING=hello
WORKDIR /srv
ENTRYPOINT ["/bin/busybox", "echo"]
CMD ["from a Dockerfile"]
"""


@pytest.fixture
def build(store, kernel):
    async def build(file, **more):
        return await build_dockerfile(file, "it", kernel=kernel, store=store, **more)

    return build


@pytest.fixture
def storage(tmp_path, monkeypatch):
    """buildah and skopeo keep images in a folder of the test's."""
    monkeypatch.setenv("BUILDAH_ISOLATION", "chroot")
    monkeypatch.setenv("STORAGE_DRIVER", "vfs")
    (tmp_path / "storage.conf").write_text(
        f'[storage]\ndriver = "vfs"\ngraphroot = "{tmp_path / "graph"}"\nrunroot = "{tmp_path / "run"}"\n'
    )
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(tmp_path / "storage.conf"))


async def test_without_buildah_it_is_named(build, store, tmp_path, monkeypatch):
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="buildah was not found") as told:
        await build(tmp_path / "Dockerfile")
    assert "apt-get install buildah" in told.value.hint
    with pytest.raises(ImageNotFound):
        store.open("it")


async def test_what_cannot_be_is_told_before_the_image_of_the_kernel_is_built(tmp_path, monkeypatch):
    """That takes a minute, and what it asks for would be told instead."""
    places, file = Places(home=tmp_path / "home", runtime=tmp_path / "runtime"), tmp_path / "Dockerfile"
    file.write_text("FROM scratch\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    daemons, dockerfile = "docker-daemon:app:1", partial(Image.build_dockerfile, places=places)
    for work, kind, told in (
        (dockerfile(file, "app"), HostError, "buildah was not found"),
        (dockerfile(file, "default"), ConfigError, "built of packages"),
        (dockerfile(file, "a/b"), ConfigError, "a/b"),
        (dockerfile(tmp_path / "none", "app"), ConfigError, "none is no file"),
        (dockerfile(file, "app", root="nowhere"), ConfigError, "'nowhere' is no root"),
        (dockerfile(file, "app", root="disk"), HostError, "sqfstar"),
        (Image.import_oci(daemons, "app", places=places), HostError, "skopeo was not found"),
        (Image.build("app", ImageConfig(source=daemons), places=places), HostError, "skopeo was not found"),
    ):
        with pytest.raises(kind, match=told):
            await work
    assert not places.images.exists()


async def test_a_file_or_a_folder_that_is_not_there_is_named(build, tmp_path):
    with pytest.raises(ConfigError, match="none is no file") as no_file:
        await build(tmp_path / "none")
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    with pytest.raises(ConfigError, match="none is no folder") as no_folder:
        await build(tmp_path / "Dockerfile", context=tmp_path / "none")
    assert (no_file.value.field, no_folder.value.field) == ("dockerfile", "context")


async def test_most_bytes_that_are_none_are_refused_before_anything_is_built(tmp_path, monkeypatch):
    monkeypatch.setattr("vmfork.api.image.check_dockerfile", lambda *_, **__: None)
    places = Places(home=tmp_path / "home", runtime=tmp_path / "runtime")
    with pytest.raises(ConfigError) as told:
        await Image.build_dockerfile(tmp_path / "Dockerfile", "app", max_bytes=0, places=places)
    assert told.value.field == "max_bytes"
    assert not places.home.exists()


@pytest.mark.slow
@pytest.mark.needs("buildah", "busybox", "root")
async def test_what_buildah_makes_is_imported(build, store, tmp_path, storage):
    busybox, file, context = find_static_busybox(), tmp_path / "Dockerfile", tmp_path / "context"
    assert busybox is not None
    context.mkdir()
    shutil.copy(busybox, context / "box")
    file.write_text(DOCKERFILE)
    first = await build(file, context=context, arguments={"WHO": "us"})
    assert files_of(first)["built"] == b"built for us\n"
    assert (first.entrypoint, first.command) == (("/bin/busybox", "echo"), ("from a Dockerfile",))
    assert (first.working_dir, first.source) == ("/srv", f"dockerfile:{file}")
    assert (await build(file, context=context, arguments={"WHO": "us"})).digest == first.digest  # of its cache
    with pytest.raises(ArtifactError, match="unpack"):
        await build(file, context=context, limits=ImportLimits(unpacked_bytes=1000))
    on_disk = await build(file, context=context, arguments={"WHO": "us"}, root="disk")
    assert (first.root_kind, on_disk.root_kind) == ("memory", "disk")
    first = await build(file, context=context, arguments={"WHO": "us"})
    file.write_text(DOCKERFILE.replace("RUN echo", "RUN false; exit 3; echo"))
    with pytest.raises(HostError, match=r"buildah build failed \(exit status \d+\)") as told:
        await build(file, context=context)
    assert "exit 3" in told.value.details()
    assert store.open("it").digest == first.digest
    assert not [path for path in store.folder.iterdir() if path.name.startswith(".staging")]


async def test_without_skopeo_it_is_named(bring, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for source in ("docker-daemon:app:1", "containers-storage:localhost/app"):
        with pytest.raises(HostError, match=f"skopeo was not found, which fetches {source}") as told:
            await bring(source)
        assert "apt-get install skopeo" in told.value.hint
    with pytest.raises(ConfigError, match="names no image"):
        await bring("docker-daemon:")


@pytest.mark.slow
@pytest.mark.needs("buildah", "skopeo", "root")
async def test_what_podman_and_buildah_have_is_fetched_by_skopeo(bring, store, tmp_path, storage):
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY a /etc/a\n")
    (tmp_path / "a").write_text("new")
    build = ["buildah", "build", "--quiet", "--format", "oci", "--tag", "localhost/app:1", str(tmp_path)]
    subprocess.run(build, check=True, capture_output=True)
    image = await bring("containers-storage:localhost/app:1")
    assert (files_of(image)["etc/a"], image.source) == (b"new", "containers-storage:localhost/app:1")
    with pytest.raises(ArtifactError, match="skopeo could not fetch it") as told:
        await bring("containers-storage:localhost/none:1")
    assert any("none" in note for note in told.value.__notes__)
    assert "none:1" in told.value.reason.partition("): ")[2]
    assert not [path for path in store.folder.iterdir() if path.name.startswith(".staging")]

"""Templates by a real registry: whole or not at all, sent once, of a child what differs. Without machines."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tests.issuer import make_certificate, running_issuer
from tests.registry import (
    HTPASSWD,
    PASSWORD,
    USER,
    Registry,
    give_up_behind,
    keep_repositories,
    lines_to,
    running_registry,
)
from tests.unit.store.samples import fill
from tests.unit.template.sparse import FITS, MIB, find_traits, ram_of
from vmfork.aio import Template
from vmfork.config import Places, VMConfig
from vmfork.errors import ArtifactError, ConfigError, HostError, ImageNotFound, StoreBusy, TemplateExists, TemplateUnfit
from vmfork.host import facts
from vmfork.host.tmpfs import mount_tmpfs, unmount
from vmfork.machine.traits import wanted_traits
from vmfork.oci.descriptor import Descriptor
from vmfork.oci.manifest import Manifest
from vmfork.oci.reference import Reference
from vmfork.oci.registry import Repository
from vmfork.progress import Progress
from vmfork.store import TemplateStore
from vmfork.store.ram_file import PAGE, digest_ram
from vmfork.template import build as building
from vmfork.template.recipe_file import read_template
from vmfork.travel.artifact import MEMORY_TYPE

pytestmark = pytest.mark.needs("qemu", "docker-registry", "oras")


@pytest.fixture
def registry(tmp_path):
    with running_registry(tmp_path / "registry") as running:
        yield running


@pytest.fixture(autouse=True)
def no_credentials(tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "config.json").write_text("{}")


async def freeze_child(parent: Template, places: Places, *, changes: dict[int, bytes]) -> Template:
    """A template as one that was frozen from a fork of `parent`, in which the pages `changes` are others."""
    store = TemplateStore(places.templates)
    async with await store.stage("child", memory_bytes=64 * MIB) as staging:
        os.pwrite(staging.memory_fd, ram_of(parent.name, places), 0)
        begin = os.pread(staging.memory_fd, PAGE, 0)
        for page, data in changes.items():
            os.pwrite(staging.memory_fd, data.ljust(PAGE, b"\0"), page * PAGE)
        manifest = fill(staging, traits=await find_traits(), ancestors=(f"{parent.name}/{parent.generation}",), **FITS)
        os.pwrite(staging.memory_fd, begin, 0)
        digest = digest_ram(staging.memory_path)
        await staging.commit(replace(manifest, memory_sha256=digest.sha256))
    return await Template.open("child", places=places)


async def test_pushed_and_pulled_elsewhere_it_is_the_same(build, places, other, registry) -> None:
    template = await build()
    pushed = await template.push(f"{registry.host}/team/py:1")
    assert pushed.sent_bytes > pushed.size_bytes > 0
    pulled = await Template.pull(f"{registry.host}/team/py:1", "copy", places=other)
    await pulled.verify()
    assert ram_of("copy", other) == ram_of("py", places)
    assert pulled.manifest.came_from == f"{registry.host}/team/py:1"
    by_digest = await Template.pull(f"{registry.host}/team/py@{pushed.digest}", "again", places=other)
    assert by_digest.manifest.memory_sha256 == template.manifest.memory_sha256


async def test_no_connection_is_left(build, other, registry, monkeypatch) -> None:
    template = await build()
    made = keep_repositories(monkeypatch)
    await template.push(f"{registry.host}/team/py:1")
    await Template.pull(f"{registry.host}/team/py:1", places=other)
    with pytest.raises(ArtifactError):
        await Template.pull(f"{registry.host}/team/py:none", places=other)
    with pytest.raises(TemplateExists):
        await Template.pull(f"{registry.host}/team/py:1", places=other)
    assert len(made) == 4
    assert lines_to(registry.host) == []


@pytest.mark.parametrize("way", ["push", "pull"])
async def test_when_it_is_cancelled_no_connection_is_left(way, build, other, registry, monkeypatch) -> None:
    template, ref = await build(), f"{registry.host}/team/py:1"
    if way == "pull":
        await template.push(ref)
    made = keep_repositories(monkeypatch)

    def cancel(progress: Progress) -> None:
        if progress.fraction and not task.cancelling():
            task.cancel()

    work = template.push if way == "push" else partial(Template.pull, places=other)
    task = asyncio.ensure_future(work(ref, progress=cancel))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (len(made), lines_to(registry.host)) == (1, [])
    assert TemplateStore(other.templates).list_names() == []


async def test_what_is_there_is_not_sent_again(build, registry) -> None:
    template = await build()
    await template.push(f"{registry.host}/team/py:1")
    before = registry.blobs
    again = await template.push(f"{registry.host}/team/py:2")
    assert again.sent_bytes == 0
    assert len(registry.blobs) == len(before)


async def test_of_a_child_the_pages_that_differ_are_sent(build, places, other, registry) -> None:
    parent = await build()
    await parent.push(f"{registry.host}/team/py:1")
    noise = {number: os.urandom(PAGE) for number in (5, 700, 701, 9000)}
    cleared = {3 * MIB // PAGE: b""}  # what the parent has there is gone
    child = await freeze_child(parent, places, changes={**noise, **cleared})
    pushed = await child.push(f"{registry.host}/team/child:1")
    whole = await child.push(f"{registry.host}/other/child:1")
    assert len(noise) * PAGE < pushed.sent_bytes
    own = await child.push(f"{registry.host}/team/child:2")
    assert own.sent_bytes == 0
    assert whole.size_bytes > len(noise) * PAGE
    for ref in (f"{registry.host}/team/child:1", f"{registry.host}/other/child:1"):
        pulled = await Template.pull(ref, "copy", places=other, replace=True)
        await pulled.verify()
        assert ram_of("copy", other) == ram_of("child", places)


async def test_a_child_of_the_same_repository_shares_its_parents_layers(build, places, registry) -> None:
    parent = await build()
    await parent.push(f"{registry.host}/team/py:1")
    before = {path.parent.name for path in registry.blobs}
    child = await freeze_child(parent, places, changes={9000: os.urandom(PAGE)})
    pushed = await child.push(f"{registry.host}/team/py:2")
    new = {path.parent.name for path in registry.blobs} - before
    # One layer, the configuration and the manifest.
    assert len(new) == 3
    assert pushed.sent_bytes < 5 * PAGE


async def test_with_a_password_it_is_said_what_to_do_without_one(build, other, tmp_path) -> None:
    template = await build()
    with running_registry(tmp_path / "closed", htpasswd=HTPASSWD) as registry:
        ref = f"{registry.host}/team/py:1"
        for work in (template.push(ref), Template.pull(ref, places=other)):
            with pytest.raises(HostError) as error:
                await work
            assert "docker login" in error.value.hint
        token = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        auths = {"auths": {registry.host: {"auth": token}}}
        (tmp_path / "docker" / "config.json").write_text(json.dumps(auths))
        await template.push(ref)
        assert (await Template.pull(ref, places=other)).name == "py"


async def test_by_tls_where_the_authority_is_known(build, other, tmp_path, monkeypatch) -> None:
    certificate, key = make_certificate(tmp_path)
    template = await build()
    with running_registry(tmp_path / "tls", tls=(certificate, key)) as registry:
        ref = f"{registry.host}/team/py:1"
        with pytest.raises(HostError, match="not to be trusted") as error:
            await template.push(ref)
        assert "REQUESTS_CA_BUNDLE" in error.value.hint
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        await template.push(ref)
        assert (await Template.pull(ref, places=other)).name == "py"


async def test_by_a_token_where_the_registry_sends_us_to_an_issuer(build, places, other, tmp_path, monkeypatch) -> None:
    certificate, key = make_certificate(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    template = await build()
    with (
        running_issuer(certificate, key, user=USER, password=PASSWORD) as issuer,
        running_registry(tmp_path / "tokens", tls=(certificate, key), issuer=issuer) as registry,
    ):
        ref = f"{registry.host}/team/py:1"
        for work in (template.push(ref), Template.pull(ref, places=other)):
            with pytest.raises(HostError) as error:
                await work
            assert "docker login" in error.value.hint
        assert issuer.refused
        assert issuer.granted == []
        token = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        (tmp_path / "docker" / "config.json").write_text(json.dumps({"auths": {registry.host: {"auth": token}}}))
        await template.push(ref)
        pulled = await Template.pull(ref, places=other)
        assert ram_of(pulled.name, other) == ram_of("py", places)
        # One to look, another to put something there.
        assert {tuple(sorted(scope.split(":")[2].split(","))) for scope in issuer.granted} == {
            ("pull",),
            ("pull", "push"),
        }


async def test_an_artifact_of_a_newer_format_is_refused_by_its_number(build, other, registry) -> None:
    await (await build()).push(f"{registry.host}/team/py:1")
    with Repository(Reference.parse(f"{registry.host}/team/py:1")) as repository:
        manifest = Manifest.from_json(repository.read_manifest("1"))
        newer = replace(manifest, artifact_type="application/vnd.vmfork.template.v2")
        repository.put_manifest("2", newer.to_json())
    with pytest.raises(ArtifactError, match="a template of format 2, and this vmfork reads format 1") as error:
        await Template.pull(f"{registry.host}/team/py:2", places=other)
    assert "vmfork that made it" in error.value.hint


async def test_a_registry_that_is_killed_half_way_leaves_nothing(build, other, registry, monkeypatch) -> None:
    template = await build()
    ref = f"{registry.host}/team/py:1"
    await template.push(ref)
    registry.kill_behind(monkeypatch, "read", MEMORY_TYPE)
    with pytest.raises(HostError, match="cannot be reached") as error:
        await Template.pull(ref, places=other)
    assert error.value.hint
    assert TemplateStore(other.templates).list_names() == []
    with pytest.raises(HostError, match="cannot be reached"):
        await template.push(ref)


async def test_a_registry_that_is_killed_within_a_push_has_no_template_and_is_pushed_to_again(
    build, places, other, registry, monkeypatch
) -> None:
    template = await build()
    with monkeypatch.context() as patch:
        registry.kill_behind(patch, "put", MEMORY_TYPE)
        with pytest.raises(HostError, match="cannot be reached") as error:
            await template.push(f"{registry.host}/team/py:1")
    assert error.value.hint
    assert lines_to(registry.host) == []
    with running_registry(registry.folder) as again:  # with what arrived
        assert again.blobs
        with pytest.raises(ArtifactError, match="has no manifests/1"):
            await Template.pull(f"{again.host}/team/py:1", places=other)
        await template.push(f"{again.host}/team/py:1")
        await (await Template.pull(f"{again.host}/team/py:1", places=other)).verify()
    assert ram_of("py", other) == ram_of("py", places)


async def test_a_layer_that_was_changed_in_the_registry_is_refused(build, other, registry) -> None:
    await (await build()).push(f"{registry.host}/team/py:1")
    for path in registry.blobs:
        data = path.read_bytes()
        if not data.startswith(b"{"):
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ArtifactError):
        await Template.pull(f"{registry.host}/team/py:1", places=other)
    assert TemplateStore(other.templates).list_names() == []


def drop_layers(registry: Registry) -> None:
    """Whoever asks for one is told that it is missing."""
    for path in registry.blobs:
        if not path.read_bytes().startswith(b"{"):
            path.unlink()


async def test_memory_that_is_short_is_told_before_layers_are_fetched(build, other, registry, monkeypatch) -> None:
    await (await build()).push(f"{registry.host}/team/py:1")
    drop_layers(registry)
    monkeypatch.setattr(facts, "available_memory_bytes", lambda: 32 * MIB)
    with pytest.raises(HostError, match="not enough memory"):
        await Template.pull(f"{registry.host}/team/py:1", places=other)
    assert TemplateStore(other.templates).list_names() == []


@pytest.fixture
def small(other, monkeypatch):
    """The other instance is an ordinary user's, who has no tmpfs of their own, on one of 80 MiB that others fill."""
    monkeypatch.setattr("vmfork.store.staging.mount_tmpfs", lambda *_, **__: False)
    other.runtime.mkdir(mode=0o700)
    assert mount_tmpfs(other.runtime, size_bytes=80 * MIB)
    yield other.runtime
    unmount(other.runtime)


def fill_up(folder: Path, *, left_bytes: int = 0) -> None:
    with (folder / "of-others").open("wb", buffering=0) as file:
        with pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(MIB))
        file.truncate(file.tell() - left_bytes)


@pytest.mark.needs("root")
@pytest.mark.parametrize(("left_bytes", "told"), [(0, "ran full"), (MIB, "the template needs 72 MiB")])
async def test_a_shared_tmpfs_that_is_full_is_told_before_layers_are_fetched(
    build, other, registry, small, left_bytes, told
) -> None:
    await (await build()).push(f"{registry.host}/team/py:1")
    drop_layers(registry)
    fill_up(small, left_bytes=left_bytes)
    with pytest.raises(HostError, match=told) as error:
        await Template.pull(f"{registry.host}/team/py:1", places=other)
    assert "VMFORK_RUNTIME_DIR" in error.value.hint
    assert [*other.templates.iterdir()] == []


@pytest.mark.needs("root")
async def test_a_shared_tmpfs_that_others_fill_meanwhile_is_told_and_nothing_is_left(
    build, other, registry, small, monkeypatch
) -> None:
    ref = f"{registry.host}/team/py:1"
    await (await build()).push(ref)
    read = Repository.read

    def fill_behind(repository: Repository, descriptor: Descriptor) -> bytes:
        data = read(repository, descriptor)
        if descriptor.media_type == MEMORY_TYPE and not (small / "of-others").exists():
            fill_up(small)
        return data

    monkeypatch.setattr(Repository, "read", fill_behind)
    with pytest.raises(HostError, match=r"the file system of .*/templates/py/.* ran full") as error:
        await Template.pull(ref, places=other)
    assert "VMFORK_RUNTIME_DIR" in error.value.hint
    assert [*other.templates.iterdir()] == []
    # Once there is room again, it is pulled as if nothing had been.
    (small / "of-others").unlink()
    monkeypatch.undo()
    await (await Template.pull(ref, "later", places=other)).verify()


async def test_whether_it_fits_is_found_before_layers_are_fetched(build, other, registry, monkeypatch) -> None:
    await (await build()).push(f"{registry.host}/team/py:1")
    drop_layers(registry)
    monkeypatch.setattr("vmfork.template.travelling.arrival.find_misfit", lambda *_: ("qemu.version", "7.2.1", "7.2.2"))
    with pytest.raises(TemplateUnfit):
        await Template.pull(f"{registry.host}/team/py:1", places=other)


async def test_of_two_that_pull_one_name_one_gets_it(build, other, registry) -> None:
    await (await build()).push(f"{registry.host}/team/py:1")
    works = (Template.pull(f"{registry.host}/team/py:1", places=other) for _ in range(2))
    found = await asyncio.gather(*works, return_exceptions=True)
    assert sorted(isinstance(each, Template) for each in found) == [False, True]
    assert any(isinstance(each, (StoreBusy, TemplateExists)) for each in found)


async def test_ensure_opens_else_pulls_else_builds(build, places, other, registry, caplog) -> None:
    template = await build()
    await template.push(f"{registry.host}/team/py:1")
    own = await Template.ensure("py", pull=f"{registry.host}/team/none:1", places=places)
    assert own.generation == template.generation
    pulled = await Template.ensure("py", pull=f"{registry.host}/team/py:1", places=other)
    assert pulled.manifest.memory_sha256 == template.manifest.memory_sha256
    again = await Template.ensure("py", pull=f"{registry.host}/team/py:1", places=other)
    assert again.generation == pulled.generation
    # What it is built of is missing here: that it is tried shows that nothing else was left.
    with pytest.raises(ImageNotFound):
        await Template.ensure("else", VMConfig(image="none"), pull=f"{registry.host}/team/none:1", places=other)
    assert "was not pulled" in caplog.text
    with pytest.raises(ConfigError, match="ref"):
        await Template.ensure("else", VMConfig(image="none"), pull="none", places=other)


RECIPE = """
[template.py]
from = "registry.example/team/py:1"
steps = [{copy = ["note", "/note"]}]
"""


def write_checkout(folder: Path, note: str) -> str:
    """A recipe and what it reads, as they lie in some checkout; its path."""
    folder.mkdir()
    (folder / "note").write_text(note)
    (folder / "vmfork.toml").write_text(RECIPE)
    return str(folder / "vmfork.toml")


async def test_two_who_ensure_one_at_once_pull_it_once(build, other, registry, monkeypatch) -> None:
    template, ref = await build(), f"{registry.host}/team/py:1"
    await template.push(ref)
    read, layers = Repository.read, []

    def counted(repository, descriptor):
        if descriptor.media_type == MEMORY_TYPE:
            layers.append(descriptor.digest)
            time.sleep(0.2)  # so that the other comes meanwhile
        return read(repository, descriptor)

    monkeypatch.setattr(Repository, "read", counted)
    both = await asyncio.gather(*(Template.ensure("py", pull=ref, places=other, wait_s=60.0) for _ in range(2)))
    assert both[0].generation == both[1].generation
    assert len(layers) == len({*layers}) > 0


async def test_ensure_pulls_what_the_recipe_makes_and_builds_what_it_does_not(
    build, other, registry, tmp_path, monkeypatch
) -> None:
    async def import_nothing(name: str, **_: object) -> None:
        raise ImageNotFound(name)

    monkeypatch.setattr(building, "ensure_image", import_nothing)
    recipe = read_template(Path(write_checkout(tmp_path / "one", "same")), "py")[1]
    traits = await find_traits()
    traits |= wanted_traits(recipe.apply_to(VMConfig()), machine=traits["machine"], accel="tcg")
    template = await build("py", recipe=recipe.name, image=recipe.vm["image"], traits=traits)
    ref = f"{registry.host}/team/py:1"
    await template.push(ref)
    elsewhere = write_checkout(tmp_path / "two", "same")
    pulled = await Template.ensure("py", recipe=elsewhere, pull=ref, places=other)
    assert pulled.manifest.memory_sha256 == template.manifest.memory_sha256
    # It needs no image, and is there from now on, whether the registry is or not.
    registry.kill()
    for pull in (ref, None):
        again = await Template.ensure("py", recipe=elsewhere, pull=pull, places=other)
        assert again.generation == pulled.generation
    # Of another recipe it is not: that is built, of an image that is missing here.
    changed = write_checkout(tmp_path / "three", "another")
    with pytest.raises(ImageNotFound):
        await Template.ensure("py", recipe=changed, pull=ref, places=other)


async def test_what_is_not_there_or_no_template_is_told(build, other, registry) -> None:
    await build()
    with pytest.raises(ArtifactError, match="has no manifests/none"):
        await Template.pull(f"{registry.host}/team/py:none", places=other)
    config = Descriptor.of(b"{}", "application/vnd.oci.image.config.v1+json")
    with Repository(Reference.parse(f"{registry.host}/team/image:1")) as repository:
        repository.put(config, b"{}")
        repository.put_manifest("1", Manifest(config=config, layers=()).to_json())
    with pytest.raises(ArtifactError, match=r"vnd\.oci\.image\.config"):
        await Template.pull(f"{registry.host}/team/image:1", places=other)


@pytest.mark.parametrize(
    "ref",
    ["", "py", "team/py:1", "./py.tar", "/tmp/py", "oci:dir:1", "http://host.example/py", "host.example/Team/py",
     "host.example/py:", "host.example/py:a b", "host.example/py@sha256:12", "host.example/", "host.example/../py",
     "host.example:port/py", f"host.example/{'a' * 256}"],
)  # fmt: skip
async def test_what_names_nothing_in_a_registry_is_refused(build, other, ref) -> None:
    template = await build()
    for work in (template.push(ref), Template.pull(ref, places=other)):
        with pytest.raises(ConfigError) as error:
            await work
        assert (error.value.field, "registry.example" in error.value.hint) == ("ref", True)


def test_references_are_read_as_docker_reads_them() -> None:
    for text, said in {
        "registry.example/py": ("registry.example", "py", "latest"),
        "registry.example:5000/team/py:1": ("registry.example:5000", "team/py", "1"),
        "localhost/py:a.b-c_d": ("localhost", "py", "a.b-c_d"),
        "build-7:5000/py": ("build-7:5000", "py", "latest"),
        f"registry.example/py@sha256:{'0' * 64}": ("registry.example", "py", f"sha256:{'0' * 64}"),
    }.items():
        reference = Reference.parse(text)
        assert (reference.host, reference.repository, reference.version) == said
        assert str(reference) == text or text.endswith("py")


@pytest.mark.parametrize("verb", ["push", "pull"])
@pytest.mark.parametrize("behind", ["nothing", "some content"])
async def test_a_registry_that_says_nothing_more_holds_up_nobody(
    build, other, registry, monkeypatch, verb, behind
) -> None:
    """Its line is open. Whoever gives up has ended at once."""
    template, ref, silent = await build(), f"{registry.host}/team/py:1", threading.Event()
    if verb == "pull":
        await template.push(ref, plain_http=True)
    if behind == "nothing":
        registry.process.send_signal(signal.SIGSTOP)
        silent.set()
    else:
        registry.stop_behind(monkeypatch, "put" if verb == "push" else "read", silent.set)
    if verb == "push":
        work = template.push(ref, plain_http=True)
    else:
        work = Template.pull(ref, "mine", places=other, plain_http=True)
    await give_up_behind(registry, silent, work)
    assert not [*other.templates.glob("mine/current")]

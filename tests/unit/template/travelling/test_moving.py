"""A template is saved and loaded whole or not at all, and not where it does not fit. Without machines: sparse RAM."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from itertools import pairwise
from pathlib import Path

import pytest

from tests.children import exit_code_of, fork_child
from tests.unit.store.samples import build_small
from tests.unit.template.sparse import MIB, ram_of
from tests.unit.travel.artifacts import changed, name_of, read_tar, write_folder
from vmfork.aio import Template
from vmfork.config import Instance, Places, VMConfig
from vmfork.errors import (
    ArtifactError,
    ConfigError,
    HostError,
    StoreBusy,
    TemplateCorrupt,
    TemplateExists,
    TemplateNotFound,
    TemplateUnfit,
    VMForkError,
)
from vmfork.host import facts
from vmfork.host.tmpfs import mount_tmpfs, unmount
from vmfork.host.zstd import compress
from vmfork.oci.layout import Layout
from vmfork.store import TemplateStore
from vmfork.template import source
from vmfork.template.kept import find_recipe
from vmfork.template.travelling import arrival
from vmfork.travel import artifact, sending

pytestmark = pytest.mark.needs("qemu")


@pytest.fixture
async def saved(build, tmp_path) -> Path:
    await (await build()).save(tmp_path / "py.tar")
    return tmp_path / "py.tar"


def nothing_is_left(places: Places) -> bool:
    return TemplateStore(places.templates).list_names() == [] and [*places.templates.iterdir()] == []


async def test_it_is_the_same_on_another_instance(build, places, other, tmp_path) -> None:
    template = await build()
    saved = await template.save(tmp_path / "py.tar")
    loaded = await Template.load(tmp_path / "py.tar", places=other)
    await loaded.verify()
    assert ram_of("py", other) == ram_of("py", places)
    was, is_now = template.manifest, loaded.manifest
    assert (is_now.name, is_now.memory_sha256, is_now.traits) == ("py", was.memory_sha256, was.traits)
    assert (is_now.host_boot_id, is_now.came_from) == (facts.boot_id(), str(tmp_path / "py.tar"))
    assert saved.size_bytes < 20_000
    assert (tmp_path / "py.tar").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("is_later", [False, True])
async def test_what_was_frozen_later_stays_where_that_is_wanted(build, places, tmp_path, is_later) -> None:
    """As from node to node: whoever sent the former one had not heard of the later one."""
    made = await build(created_at="2026-01-01T00:00:00.000+00:00")
    await made.save(tmp_path / "py.tar")
    there = await build(created_at=f"202{7 if is_later else 5}-01-01T00:00:00.000+00:00")
    target = arrival.Target(instance=Instance(places), config=VMConfig(), replace_it=True, keep_later=True)
    found = await arrival.load_template(tmp_path / "py.tar", target)
    in_force = (await Template.open("py", places=places)).manifest
    assert found.manifest == in_force
    assert (in_force.generation == there.manifest.generation) == is_later
    assert (in_force.created_at == made.manifest.created_at) != is_later
    assert len([path for path in (places.templates / "py").iterdir() if path.is_dir() and not path.is_symlink()]) == 1


async def test_what_is_secret_in_it_is_told_there_too(build, other, tmp_path) -> None:
    """A fork there clears what one here would, and it is known what was frozen with it."""
    said = {"secret_paths": ("/run/key", "/root/.netrc"), "secret_env": ("TOKEN",), "secrets_found": ("/run/key",)}
    await (await build(**said)).save(tmp_path / "py.tar")
    m = (await Template.load(tmp_path / "py.tar", places=other)).manifest
    assert {name: getattr(m, name) for name in said} == said


async def test_saved_twice_it_is_the_same_bytes(build, tmp_path) -> None:
    template = await build()
    digests = {(await template.save(tmp_path / name)).digest for name in ("a", "b")}
    assert len(digests) == 1
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


async def test_it_takes_another_name_and_a_folder_will_do(saved, other, tmp_path) -> None:
    folder = write_folder(tmp_path / "layout", read_tar(saved))
    loaded = await Template.load(folder, "other", places=other)
    assert loaded.name == "other"
    assert (await Template.open("other", places=other)).manifest == loaded.manifest


async def test_it_is_not_held_to_an_image_of_this_host(saved, other, monkeypatch) -> None:
    def open_image(_store, _name):
        raise AssertionError("the image of that name here is another")

    monkeypatch.setattr(source.ImageStore, "open", open_image)
    await Template.load(saved, places=other)


async def test_the_name_is_not_taken_without_being_asked(saved, other) -> None:
    first = await Template.load(saved, places=other)
    with pytest.raises(TemplateExists):
        await Template.load(saved, places=other)
    second = await Template.load(saved, places=other, replace=True)
    assert second.generation != first.generation


async def test_it_cannot_be_made_again_and_that_is_said(saved, other) -> None:
    await Template.load(saved, places=other)
    kept = find_recipe("py", places=other)
    with pytest.raises(TemplateNotFound) as error:
        kept.to_recipe("py")
    assert str(saved) in error.value.hint


async def test_what_is_saved_is_what_was_frozen(build, places, tmp_path) -> None:
    template = await build()
    memory = places.templates / "py" / template.generation / "memory"
    with memory.open("r+b") as file:
        file.seek(17 * MIB)
        file.write(b"y")
    (tmp_path / "py.tar").write_bytes(b"former")
    with pytest.raises(TemplateCorrupt, match="memory"):
        await template.save(tmp_path / "py.tar")
    assert (tmp_path / "py.tar").read_bytes() == b"former"
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []


# What is wrong with an artifact.


async def test_one_that_is_cut_off_anywhere_is_refused(saved, other, tmp_path) -> None:
    data = saved.read_bytes()
    for size in (0, 1, 511, 512, 700, len(data) // 3, len(data) // 2, len(data) - 12_000, len(data) - 10_240 - 600):
        short = tmp_path / "short.tar"
        short.write_bytes(data[:size])
        with pytest.raises(ArtifactError) as error:
            await Template.load(short, places=other)
        assert str(short) in str(error.value), size
        assert error.value.hint
    assert not other.templates.exists() or nothing_is_left(other)


async def test_a_byte_that_changed_in_any_part_is_found(saved, other, tmp_path) -> None:
    files = read_tar(saved)
    for number, (name, data) in enumerate(files.items()):
        if name == "oci-layout":
            continue  # says nothing that is needed
        at = len(data) // 2
        folder = write_folder(
            tmp_path / str(number), files | {name: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]}
        )
        with pytest.raises(ArtifactError):
            await Template.load(folder, places=other)
        assert not other.templates.exists() or nothing_is_left(other), name


async def test_layers_that_are_missing_swapped_or_in_another_order_are_refused(saved, other, tmp_path) -> None:
    def other_order(parts):
        parts.manifest["layers"][:2] = parts.manifest["layers"][1::-1]

    def swapped_everywhere(parts):
        parts.manifest["layers"][:2] = parts.manifest["layers"][1::-1]
        parts.config["memory"][0], parts.config["memory"][-1] = parts.config["memory"][-1], parts.config["memory"][0]

    def one_less(parts):
        del parts.manifest["layers"][0], parts.config["memory"][0]

    def another_content(parts):
        raw = parts.config["memory"][0]["raw_bytes"]
        parts.replace_layer(0, compress(b"\0" * raw))

    def another_state(parts):
        size = parts.config["state"]["raw_bytes"]
        parts.replace_layer(len(parts.config["memory"]), compress(b"\1" * size))

    def is_missing(parts):
        del parts.files[name_of(parts.config["memory"][0]["digest"])]

    for change in (other_order, swapped_everywhere, one_less, another_content, another_state, is_missing):
        with pytest.raises(ArtifactError):
            await Template.load(changed(saved, tmp_path / change.__name__, change), places=other)
        assert not other.templates.exists() or nothing_is_left(other), change.__name__


async def test_a_layer_that_is_more_than_it_says_or_than_any_is_refused(saved, other, tmp_path) -> None:
    bomb = compress(bytes(512 * MIB))

    def larger_than_said(parts):
        parts.replace_layer(0, bomb)

    def as_large_as_said(parts):
        parts.replace_layer(0, bomb, raw_bytes=512 * MIB)

    def a_state_without_end(parts):
        parts.replace_layer(len(parts.config["memory"]), bomb, raw_bytes=512 * MIB)
        parts.config["manifest"]["state_bytes"] = 512 * MIB

    def many_times_the_ram(parts):
        parts.config["memory"] += [parts.config["memory"][0] | {"raw_bytes": 16 * MIB}] * 20
        parts.manifest["layers"][-1:-1] = [parts.manifest["layers"][0]] * 20

    def no_zstd(parts):
        parts.replace_layer(0, b"plain")

    for change in (larger_than_said, as_large_as_said, a_state_without_end, many_times_the_ram, no_zstd):
        with pytest.raises(ArtifactError):
            await Template.load(changed(saved, tmp_path / change.__name__, change), places=other)
        assert not other.templates.exists() or nothing_is_left(other), change.__name__


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"name": "../../etc"}, "name"),
        ({"memory_bytes": 1 << 50}, "RAM"),
        ({"memory_mib": 1 << 40}, "memory_mib"),
        ({"cpus": -1}, "cpus"),
        ({"max_cpus": 10**9}, "cpus"),
        ({"added_mib": [-5]}, "-5"),
        ({"added_mib": [64]}, "64"),
        ({"state_bytes": 0}, "state"),
        ({"traits": {}}, "accelerator"),
        ({"memory_sha256": 5}, "memory_sha256"),
    ],
)
async def test_a_machine_that_no_configuration_gives_is_refused(saved, other, tmp_path, said, named) -> None:
    def change(parts):
        parts.config["manifest"] |= said

    with pytest.raises(ArtifactError, match=named):
        await Template.load(changed(saved, tmp_path / "layout", change), places=other)
    assert not other.templates.exists()


@pytest.mark.parametrize(
    "trait", [{"cpu_model": "max -device x"}, {"cpu_model": "-S"}, {"accel": "tcg,thread=multi"}, {"cpu_model": ""}]
)
async def test_nothing_but_a_processor_comes_into_the_emulators_arguments(saved, other, tmp_path, trait) -> None:
    def change(parts):
        parts.config["manifest"]["traits"] |= trait

    with pytest.raises(ArtifactError):
        await Template.load(changed(saved, tmp_path / "layout", change), places=other)


async def test_a_newer_format_is_refused_by_its_number(saved, other, tmp_path) -> None:
    def newer_artifact(parts):
        parts.manifest["artifactType"] = "application/vnd.vmfork.template.v2"

    def newer_configuration(parts):
        parts.config["format"] = 3

    def newer_manifest(parts):
        parts.config["manifest"]["format"] = 99

    for change, named in ((newer_artifact, "format 2"), (newer_configuration, "format is 3"), (newer_manifest, "99")):
        with pytest.raises(ArtifactError, match=named) as error:
            await Template.load(changed(saved, tmp_path / change.__name__, change), places=other)
        assert "vmfork that made it" in error.value.hint


async def test_what_is_no_template_is_refused_by_what_it_is(saved, other, tmp_path) -> None:
    def an_image(parts):
        del parts.manifest["artifactType"]
        parts.manifest["config"]["mediaType"] = "application/vnd.oci.image.config.v1+json"

    (tmp_path / "text").write_text("no tar at all" * 100)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match=r"vnd\.oci\.image"):
        await Template.load(changed(saved, tmp_path / "image", an_image), places=other)
    with pytest.raises(ArtifactError, match="not a tar"):
        await Template.load(tmp_path / "text", places=other)
    with pytest.raises(ArtifactError, match=r"index\.json"):
        await Template.load(tmp_path / "empty", places=other)
    with pytest.raises(ConfigError, match="nothing is at"):
        await Template.load(tmp_path / "none", places=other)
    with pytest.raises(ConfigError, match="name"):
        await Template.load(saved, "no/name", places=other)


# Whom it fits.


@pytest.mark.parametrize(
    ("trait", "have"),
    [("qemu.version", "99.0.3 (Debian 1:99.0.3+ds-1)"), ("machine", "pc-q35-99.0"), ("machine", "q35,firmware=/etc/x")],
)
async def test_a_host_that_it_does_not_fit_is_told_before_its_ram_is_read(saved, other, tmp_path, trait, have) -> None:
    def change(parts):
        for layer in parts.manifest["layers"]:
            del parts.files[name_of(layer["digest"])]
        parts.config["manifest"]["traits"][trait] = have

    with pytest.raises(TemplateUnfit) as error:
        await Template.load(changed(saved, tmp_path / "layout", change), places=other)
    assert (error.value.field, error.value.have) == (trait, have)
    assert have in str(error.value)
    assert "it fits hosts" in error.value.hint
    assert not other.templates.exists()


async def test_under_kvm_it_fits_that_processor_or_where_it_is_named_any(saved, other, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(arrival.find_misfit.__globals__["kvm"], "find_refusal", lambda: None)

    def change(**traits):
        def of_host(parts):
            parts.config["manifest"]["traits"] |= {"accel": "kvm", **traits}

        return of_host

    own = changed(saved, tmp_path / "own", change(cpu_model="host,migratable=on", host_cpu="Another CPU"))
    with pytest.raises(TemplateUnfit) as error:
        await Template.load(own, places=other)
    assert (error.value.field, error.value.have) == ("host_cpu", "Another CPU")
    assert "portable" in error.value.hint
    named = changed(saved, tmp_path / "named", change(cpu_model="Nehalem"))
    assert (await Template.load(named, places=other)).hardware.cpu_model == "Nehalem"


async def test_without_kvm_one_that_needs_it_is_refused(saved, other, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(arrival.find_misfit.__globals__["kvm"], "find_refusal", lambda: "there is none")

    def change(parts):
        parts.config["manifest"]["traits"] |= {"accel": "kvm", "cpu_model": "Nehalem"}

    with pytest.raises(TemplateUnfit) as error:
        await Template.load(changed(saved, tmp_path / "layout", change), places=other)
    assert (error.value.field, error.value.want) == ("accel", "tcg")


async def test_where_kvm_ran_no_guest_one_that_needs_it_is_refused(saved, other, tmp_path, monkeypatch) -> None:
    """Its device can be opened, which proves nothing."""
    monkeypatch.setattr(arrival.find_misfit.__globals__["kvm"], "find_refusal", lambda: None)
    monkeypatch.setattr(arrival, "find_failure", lambda places: "it hangs" if places == other else None)

    def change(parts):
        parts.config["manifest"]["traits"] |= {"accel": "kvm", "cpu_model": "Nehalem"}

    with pytest.raises(TemplateUnfit) as error:
        await Template.load(changed(saved, tmp_path / "layout", change), places=other)
    assert (error.value.field, error.value.want) == ("accel", "tcg")
    assert not other.templates.exists()


async def test_a_guest_without_a_clock_of_its_own_goes_where_the_processor_counts_alike(
    saved, other, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(arrival, "measure_tsc_khz", lambda: 2_000_000)

    def change(khz):
        def counting(parts):
            parts.config["manifest"]["traits"] |= {"machine": "microvm"}
            parts.config["tsc_khz"] = khz

        return counting

    for khz in (0, 2_100_000, 2_000_300):
        with pytest.raises(TemplateUnfit) as error:
            await Template.load(changed(saved, tmp_path / str(khz), change(khz)), places=other)
        assert (error.value.field, error.value.have) == ("tsc_khz", khz)
    await Template.load(changed(saved, tmp_path / "same", change(2_000_001)), places=other)


# Who comes in between.


async def test_of_two_that_load_one_name_one_gets_it(saved, other) -> None:
    async def load() -> Template | VMForkError:
        try:
            return await Template.load(saved, places=other)
        except (StoreBusy, TemplateExists) as error:
            return error

    found = await asyncio.gather(load(), load())
    assert sorted(isinstance(each, Template) for each in found) == [False, True]
    await (await Template.open("py", places=other)).verify()


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


def save_here(build, path: Path) -> None:
    """As `saved`, by an event loop that is over: a child is made by fork while no thread is there."""

    async def save() -> None:
        await (await build()).save(path)

    asyncio.run(save())


def test_a_load_that_is_killed_is_swept(build, other, tmp_path) -> None:
    saved = tmp_path / "py.tar"
    save_here(build, saved)
    with Layout.open(saved) as layout:
        found = artifact.KIND.read_layout(artifact.Artifact, layout)

    def load_and_die(number: int) -> None:
        async def load() -> None:
            with Layout.open(saved) as layout:
                target = arrival.Target(instance=Instance(other), config=VMConfig())
                await arrival.put_in_force(found, _DiesAt(layout, number), target, of="it")

        asyncio.run(load())

    for number in range(1, len(found.layers) + 1):
        assert exit_code_of(fork_child(lambda number=number: load_and_die(number))) == -signal.SIGKILL
        assert [path.name for path in other.templates.glob("py/*")]
        assert nothing_is_left(other)


def test_a_save_that_is_killed_leaves_the_former_file_and_the_next_sweeps(build, places, tmp_path) -> None:
    asyncio.run(build())
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "py.tar").write_bytes(b"former")

    def save_and_die() -> None:
        async def save() -> None:
            sending.Archive.put = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
            await (await Template.open("py", places=places)).save(folder / "py.tar")

        asyncio.run(save())

    assert exit_code_of(fork_child(save_and_die)) == -signal.SIGKILL
    assert len([*folder.iterdir()]) == 2
    assert (folder / "py.tar").read_bytes() == b"former"

    async def save() -> None:
        await (await Template.open("py", places=places)).save(folder / "py.tar")

    asyncio.run(save())
    assert [path.name for path in folder.iterdir()] == ["py.tar"]


@pytest.mark.parametrize("what", ["save", "load"])
async def test_when_it_is_cancelled_nothing_is_left(build, places, other, saved, tmp_path, what) -> None:
    folder = tmp_path / "out"
    folder.mkdir()

    def cancel(_event) -> None:
        task.cancel()

    template = await Template.open("py", places=places)
    work = (
        template.save(folder / "py.tar", progress=cancel)
        if what == "save"
        else Template.load(saved, places=other, progress=cancel)
    )
    task = asyncio.ensure_future(work)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [*folder.iterdir()] == []
    assert not other.templates.exists() or nothing_is_left(other)


@pytest.mark.needs("root")
async def test_a_full_disk_is_told_and_nothing_is_left(build, saved, tmp_path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    assert mount_tmpfs(folder, size_bytes=8192)
    try:
        template = await build("second")
        with pytest.raises(HostError, match="No space left") as error:
            await template.save(folder / "py.tar")
        assert "room" in error.value.hint
        assert [*folder.iterdir()] == []
    finally:
        unmount(folder)


async def test_memory_that_is_short_is_told_before_the_ram_is_read(saved, other, monkeypatch) -> None:
    monkeypatch.setattr(facts, "available_memory_bytes", lambda: 32 * MIB)
    with pytest.raises(HostError, match="not enough memory"):
        await Template.load(saved, places=other)
    assert nothing_is_left(other)


async def test_layers_of_recipes_give_way_to_one_that_is_loaded(saved, other, monkeypatch) -> None:
    kept = TemplateStore(other.layers)
    for name in ("one", "two"):
        await build_small(kept, name)
    monkeypatch.setattr(facts, "available_memory_bytes", lambda: 0 if len(kept.list_names()) > 1 else 1 << 40)
    assert (await Template.load(saved, places=other)).name == "py"
    assert len(kept.list_names()) == 1
    kept.clear()


async def test_few_layers_are_in_memory_at_once(saved, other) -> None:
    """A layer is of a part of RAM whose size does not grow with the RAM, up to 8 GiB."""
    for gib in (1, 8):
        assert artifact.span_of(gib << 30) == 16 * MIB
    spans = artifact.list_spans((1 << 40) + 4096)
    assert len(spans) <= 513
    assert (spans[0][0], spans[-1][1]) == (0, (1 << 40) + 4096)
    assert all(end == begin for (_, end), (begin, _) in pairwise(spans))


async def test_progress_is_told_up_to_the_end(saved, other) -> None:
    told = []
    await Template.load(saved, places=other, progress=told.append)
    fractions = [each.fraction for each in told if each.fraction is not None]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


async def test_the_layout_is_what_the_specification_of_oci_says(saved) -> None:
    files = read_tar(saved)
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    (named,) = json.loads(files["index.json"])["manifests"]
    manifest = json.loads(files[name_of(named["digest"])])
    assert (manifest["schemaVersion"], manifest["artifactType"]) == (2, artifact.TYPE)
    for each in (manifest["config"], *manifest["layers"]):
        assert len(files[name_of(each["digest"])]) == each["size"]


@pytest.mark.parametrize("path", ["", "a\0b"])
async def test_what_is_no_path_is_refused_both_ways(saved, places, other, path) -> None:
    template = (await Template.list(places=places))[0]
    with pytest.raises(ConfigError, match="is not a path"):
        await (await Template.open(template, places=places)).save(path)
    with pytest.raises(ConfigError, match="is not a path"):
        await Template.load(path, places=other)

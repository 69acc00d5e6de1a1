"""What is kept on disk comes back after a reboot: RUNTIME is gone then, or is of another boot."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Coroutine

import pytest

from tests.unit.template.disks import find_disk_fields
from tests.unit.template.sparse import ram_of
from vmfork.aio import Template
from vmfork.cluster.node import Node
from vmfork.config import Instance, Places, VMConfig
from vmfork.errors import ArtifactError, ImageCorrupt, TemplateNotFound, TemplateUnfit
from vmfork.host import facts
from vmfork.host.tmpfs import unmount
from vmfork.store import TemplateStore
from vmfork.template.kept import KeptRecipe, find_recipe, keeping_recipe
from vmfork.template.removal import list_persisted, locate_persisted
from vmfork.template.source import Source
from vmfork.template.travelling import arrival
from vmfork.template.travelling.persisted import bring_back, follow
from vmfork.travel import sending

pytestmark = pytest.mark.needs("qemu")


def reboot(places: Places) -> None:
    """RUNTIME is gone, with all that was mounted there."""
    for folder in places.templates.glob("*/*"):
        if os.path.ismount(folder):
            unmount(folder)
    shutil.rmtree(places.runtime)


async def test_it_is_there_after_a_reboot_as_it_was(build, places) -> None:
    template = await build()
    was = ram_of("py", places)
    with keeping_recipe("py", KeptRecipe(config=VMConfig(cpus=2), warm_up=("true",)), places=places):
        pass
    await template.persist()
    reboot(places)
    again = await Template.open("py", places=places)
    await again.verify()
    assert again.generation != template.generation
    assert (again.manifest.came_from, again.manifest.image) == ("", template.manifest.image)
    assert ram_of("py", places) == was
    assert find_recipe("py", places=places).warm_up == ("true",)
    path = locate_persisted("py", places)
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


async def test_one_that_is_not_kept_is_not_there(build, places) -> None:
    await build()
    reboot(places)
    with pytest.raises(TemplateNotFound):
        await Template.open("py", places=places)


async def test_a_runtime_folder_that_lasts_is_of_another_boot(build, places, monkeypatch) -> None:
    """Files there were never synced: what is in memory is the one from the disk."""
    template = await build()
    await template.persist()
    monkeypatch.setattr(facts, "boot_id", lambda: "another")
    again = await Template.open("py", places=places)
    assert again.manifest.host_boot_id == "another"
    await again.verify()
    monkeypatch.undo()
    await TemplateStore(places.templates).remove("py")


async def test_a_node_of_a_cluster_has_it_again_and_another_that_is_damaged_keeps_it_from_nothing(
    build, places, caplog
) -> None:
    for name in ("damaged", "py"):
        await (await build(name)).persist()
    path = locate_persisted("damaged", places)
    path.write_bytes(path.read_bytes()[:-70_000])
    reboot(places)
    async with await Node.open("one", {}, labels={}, places=places) as node:
        while [held.name for held in (await node.report()).held] != ["py"]:
            await asyncio.sleep(0.05)
    assert "template damaged stays on disk" in caplog.text
    async with await Node.open("one", {}, labels={}, places=places):  # ends while it looks
        pass


async def test_many_that_use_it_at_once_bring_it_back_once(build, places) -> None:
    await (await build()).persist()
    reboot(places)
    found = await asyncio.gather(*(Template.open("py", places=places) for _ in range(5)))
    assert len({template.generation for template in found}) == 1


async def test_what_replaces_it_is_kept_in_its_place(build, places, tmp_path) -> None:
    await (await build()).persist()
    await (await build("next")).save(tmp_path / "next.tar")
    replaced = await Template.load(tmp_path / "next.tar", "py", replace=True, places=places)
    reboot(places)
    again = await Template.open("py", places=places)
    assert (again.manifest.created_at, again.manifest.came_from) == (
        replaced.manifest.created_at,
        str(tmp_path / "next.tar"),
    )


async def test_a_setting_keeps_all(build, places, tmp_path) -> None:
    await (await build()).save(tmp_path / "py.tar")
    await Template.load(tmp_path / "py.tar", "copy", config=VMConfig(persist=True), places=places)
    assert list_persisted(places) == ["copy"]


async def test_removed_it_is_gone_for_good(build, places) -> None:
    template = await build()
    await template.persist()
    await template.remove()
    assert [*places.persisted.iterdir()] == []
    with pytest.raises(TemplateNotFound):
        await Template.open("py", places=places)


async def test_it_can_be_removed_without_being_brought_back(build, places) -> None:
    template = await build()
    await template.persist()
    reboot(places)
    await template.remove()
    assert list_persisted(places) == []
    with pytest.raises(TemplateNotFound):
        await template.remove()


@pytest.fixture
def before_it_is_there(monkeypatch):
    """Once all is written, and before it is at its place, that is done."""
    pack = sending.pack

    def do(step: Callable[[], Coroutine[None, None, None]]) -> None:
        def packed(*args, **options):
            artifact = pack(*args, **options)
            monkeypatch.setattr(sending, "pack", pack)
            asyncio.run(step())  # this is a thread of its own
            return artifact

        monkeypatch.setattr(sending, "pack", packed)

    return do


async def test_one_that_is_removed_while_it_is_saved_does_not_come_back(build, places, before_it_is_there) -> None:
    template = await build()
    before_it_is_there(template.remove)
    with pytest.raises(TemplateNotFound):
        await template.persist()
    assert [*places.persisted.iterdir()] == []
    with pytest.raises(TemplateNotFound):
        await Template.open("py", places=places)


async def test_an_older_one_does_not_take_the_place_of_a_newer(build, places, tmp_path, before_it_is_there) -> None:
    template = await build()
    await (await build("next")).save(tmp_path / "next.tar")

    async def replace() -> None:
        newer = await Template.load(tmp_path / "next.tar", "py", replace=True, places=places)
        await newer.persist()

    before_it_is_there(replace)
    with pytest.raises(TemplateNotFound):
        await template.persist()
    reboot(places)
    assert (await Template.open("py", places=places)).manifest.came_from == str(tmp_path / "next.tar")


async def test_who_publishes_one_that_is_replaced_meanwhile_leaves_what_is_kept_to_the_other(
    build, places, tmp_path, before_it_is_there
) -> None:
    await build()
    await (await build("next")).save(tmp_path / "next.tar")
    source = await Source.open("py", config=VMConfig(), instance=Instance(places))

    async def replace() -> None:
        await Template.load(tmp_path / "next.tar", "py", replace=True, places=places)

    before_it_is_there(replace)
    await follow(source, config=VMConfig(persist=True), instance=Instance(places))
    assert list_persisted(places) == []


async def test_one_whose_disk_is_gone_is_not_kept(build, places) -> None:
    fields = await find_disk_fields(places, b"root")
    template = await build(**fields)
    shutil.rmtree(places.disks / fields["disk_sha256"])
    with pytest.raises(ImageCorrupt):
        await template.persist()
    assert list_persisted(places) == []


async def test_one_that_is_removed_while_it_is_brought_back_is_gone(build, places, monkeypatch) -> None:
    template = await build()
    await template.persist()
    reboot(places)
    put_in_force, removals = arrival.put_in_force, []

    async def removed_meanwhile(*args, **options):
        removals.append(asyncio.create_task(template.remove()))
        for _ in range(10):
            await asyncio.sleep(0)  # it has begun, and waits
        return await put_in_force(*args, **options)

    monkeypatch.setattr(arrival, "put_in_force", removed_meanwhile)
    await Template.open("py", places=places)
    await removals[0]
    assert TemplateStore(places.templates).list_names() == []
    with pytest.raises(TemplateNotFound):
        await Template.open("py", places=places)


async def test_an_emulator_that_was_upgraded_meanwhile_is_named_and_ensure_builds(build, places, monkeypatch) -> None:
    monkeypatch.setattr("vmfork.template.travelling.arrival.find_misfit", lambda *_: ("qemu.version", "7.2.1", "7.2.2"))
    template = await build("fits")
    await template.persist()
    reboot(places)
    with pytest.raises(TemplateUnfit) as error:
        await Template.open("fits", places=places)
    assert str(locate_persisted("fits", places)) in str(error.value)
    await bring_back("fits", VMConfig(), instance=Instance(places))
    assert await Source.find("fits", None, instance=Instance(places)) is None


async def test_one_that_is_damaged_is_told_and_ensure_builds(build, places) -> None:
    await (await build()).persist()
    reboot(places)
    path = locate_persisted("py", places)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ArtifactError):
        await Template.open("py", places=places)
    await bring_back("py", VMConfig(), instance=Instance(places))
    assert await Source.find("py", None, instance=Instance(places)) is None


async def test_names_beside_it_are_no_templates(places) -> None:
    places.persisted.mkdir(parents=True)
    for name in (".py.tar.12345678.part", "py.txt", "-x.tar", "py.tar"):
        (places.persisted / name).touch()
    assert list_persisted(places) == ["py"]

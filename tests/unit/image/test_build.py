"""What a build does beside running mmdebstrap: cache, locks, preflight. A fake stands for the run itself."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.image.fake_run import MEMBERS, stand_in
from vmfork.config import ImageConfig
from vmfork.errors import ConfigError, HostError
from vmfork.image import build, recipe, write_least
from vmfork.image.store import ImageStore

CONFIG = ImageConfig(packages=("bash",))


@pytest.fixture
async def run(monkeypatch, tmp_path):
    return stand_in(monkeypatch, tmp_path)


async def test_a_build_makes_an_image_that_opens(run, tmp_path):
    steps = []
    image = await build.build_image("one", CONFIG, store=ImageStore(tmp_path / "images"), progress=steps.append)
    assert ImageStore(tmp_path / "images").open("one") == image
    assert ImageStore(tmp_path / "images").verify("one") == image
    assert dict(image.packages) == {"dash": "1:2-3", "linux-image-6.12": "6.12-1"}
    assert image.kernel.read_bytes() == b"kernel"
    assert image.kernel_release == "6.12"
    fractions = [step.fraction for step in steps]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert steps[0].task == "image"


async def test_the_second_time_nothing_runs(run, tmp_path):
    first = await build.build_image("one", CONFIG, store=ImageStore(tmp_path / "images"))
    second = await build.build_image("two", CONFIG, store=ImageStore(tmp_path / "images"))
    assert run.count == 1
    assert second.digest == first.digest
    assert [image.name for image in ImageStore(tmp_path / "images").list_images()] == ["one", "two"]


async def test_a_rebuild_that_gives_the_same_keeps_what_was_measured(run, tmp_path):
    first = await build.build_image("one", CONFIG, store=ImageStore(tmp_path / "images"))
    write_least(first.kernel.parent, 200, measured="by a test")
    again = await build.build_image("one", CONFIG, store=ImageStore(tmp_path / "images"), rebuild=True)
    assert run.count == 2
    assert (again.digest, again.min_memory_mib) == (first.digest, 200)


async def test_a_recipe_that_gives_what_another_gave_is_not_run_each_time(run, tmp_path, monkeypatch):
    """A comment in a script that is installed was changed, and every command built the image anew."""
    first = await build.build_image("one", CONFIG, store=ImageStore(tmp_path / "images"))
    write_least(first.kernel.parent, 200, measured="by a test")
    monkeypatch.setattr(recipe, "RECIPE_VERSION", recipe.RECIPE_VERSION + 1)
    again = [await build.build_image("one", CONFIG, store=ImageStore(tmp_path / "images")) for _ in range(2)]
    assert run.count == 2
    assert [(image.digest, image.min_memory_mib) for image in again] == [(first.digest, 200)] * 2
    assert again[0].recipe == again[1].recipe != first.recipe


async def test_other_versions_make_another_image_of_the_same_recipe(run, tmp_path, monkeypatch):
    first = await build.build_image("one", CONFIG, store=ImageStore(tmp_path / "images"))
    monkeypatch.setitem(MEMBERS, "./usr/bin/dash", b"newer")
    again = await build.build_image("one", CONFIG, store=ImageStore(tmp_path / "images"), rebuild=True)
    assert again.recipe == first.recipe
    assert again.digest != first.digest
    assert not first.kernel.exists()


async def test_a_rebuild_runs_again(run, tmp_path):
    await build.build_image("one", CONFIG, store=ImageStore(tmp_path / "images"))
    await build.build_image("one", CONFIG, store=ImageStore(tmp_path / "images"), rebuild=True)
    assert run.count == 2


async def test_a_damaged_image_is_mended_by_building(run, tmp_path):
    image = await build.build_image("one", CONFIG, store=ImageStore(tmp_path / "images"))
    image.initramfs.write_bytes(b"")
    await build.build_image("one", CONFIG, store=ImageStore(tmp_path / "images"))
    assert run.count == 2
    ImageStore(tmp_path / "images").open("one")


async def test_two_builders_of_one_image_take_turns(run, tmp_path):
    run.may_end.clear()
    steps = []

    def listen(event) -> None:
        steps.append(event.step)
        if event.step == "waiting for another build":
            run.may_end.set()

    first = asyncio.create_task(build.build_image("one", CONFIG, store=ImageStore(tmp_path / "images")))
    await run.started.wait()
    second = await build.build_image("two", CONFIG, store=ImageStore(tmp_path / "images"), progress=listen)
    assert (await first).digest == second.digest
    assert run.count == 1
    assert "waiting for another build" in steps


async def test_cancel_leaves_nothing(run, tmp_path):
    run.may_end.clear()
    task = asyncio.create_task(build.build_image("one", CONFIG, store=ImageStore(tmp_path / "images")))
    await run.started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["locks", "names"]
    run.may_end.set()
    await build.build_image("one", CONFIG, store=ImageStore(tmp_path / "images"))


async def test_cancel_while_packing_ends_the_thread(run, tmp_path, monkeypatch):
    packing = asyncio.Event()
    loop = asyncio.get_running_loop()
    ended = []

    def pack(*_args, stop, **_options) -> None:
        loop.call_soon_threadsafe(packing.set)
        ended.append(stop.wait(10))
        raise build._StoppedError

    monkeypatch.setattr(build, "pack", pack)
    task = asyncio.create_task(build.build_image("one", CONFIG, store=ImageStore(tmp_path / "images")))
    await packing.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [True]
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["locks", "names"]


async def test_too_little_space_is_refused_with_the_figures(run, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "NEEDED_MIB", 10**9)
    with pytest.raises(HostError, match=r"has \d+ MiB free, a build needs 1000000000 MiB"):
        await build.build_image("one", CONFIG, store=ImageStore(tmp_path / "images"))
    assert run.count == 0


async def test_a_name_is_checked_before_anything_is_done(run, tmp_path):
    with pytest.raises(ConfigError):
        await build.build_image("../x", CONFIG, store=ImageStore(tmp_path / "images"))
    assert not (tmp_path / "images").exists()

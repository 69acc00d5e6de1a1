"""Layers: what an earlier build has done is not done again, and none of it is needed to be right."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.vm.cli_runner import left_of, vmfork
from vmfork.aio import VM, Recipe, Template
from vmfork.config import VMConfig
from vmfork.errors import ExecError
from vmfork.store import TemplateStore
from vmfork.store.layers import LayerStore
from vmfork.template import making
from vmfork.template.removal import remove_template

pytestmark = pytest.mark.vm


def keep_each_step(monkeypatch) -> None:
    for name in ("LAYER_WORTH_S", "LAST_WORTH_S"):
        monkeypatch.setattr(making, name, 0.0)


@pytest.fixture(autouse=True)
async def every_step_is_kept(instance, monkeypatch):
    keep_each_step(monkeypatch)
    yield
    for name in await Template.list():
        if name.startswith("layered"):
            await remove_template(name, places=instance)
    await LayerStore(instance.layers).remove_all()
    assert left_of(instance.runtime) == []


def told_by(progress: list[str]) -> list[str]:
    return [step for step in progress if step.startswith(("going on", "booting", "running", "start"))]


async def make(name: str, steps: list[dict], **options) -> tuple[Template, list[str]]:
    told: list[str] = []
    template = await Template.build(name, steps=steps, progress=lambda each: told.append(each.step), **options)
    return template, told_by(told)


STEPS = [
    {"run": "echo $$ > /root/one"},
    {"env": {"WHO": "web"}},
    {"start": "echo begun; exec sleep 1000"},
    {"run": "echo $WHO > /root/two"},
]


TWO = [{"run": "echo one > /root/one"}, {"run": "echo two > /root/two"}]


@pytest.mark.kvm
async def test_a_step_that_fails_leaves_its_machine_and_is_redone_alone_while_what_ran_before_runs_on(instance) -> None:
    told: list[str] = []
    broken = [*STEPS[:3], {"run": "touch /root/half; echo why >&2; exit 9"}]
    with pytest.raises(ExecError, match="step 4 of 4") as caught:
        await Template.build("layered", steps=broken, keep_failed=True, progress=lambda each: told.append(each.step))
    assert told_by(told)[0].startswith("booting")
    assert "layered" not in await Template.list()
    vm_id = caught.value.hint.split("vmfork stop ")[1]
    async with await VM.attach(vm_id) as vm:
        assert await vm.exists("/root/half")
        assert (await vm.shell("ps -o args= -C sleep", check=True)).stdout == "sleep 1000\n"
    template, told = await make("layered", STEPS)
    assert told == ["going on behind step 3, start echo begun; exec sleep 1000", "running 'echo $WHO > /root/two'"]
    assert [step.reused for step in template.manifest.steps] == [True, True, True, False]
    async with await template.fork() as vm:
        assert await vm.read_file("/root/two") == b"web\n"
        assert (await vm.shell("ps -o args= -C sleep", check=True)).stdout == "sleep 1000\n"
        assert await vm.read_file("/run/vmfork-start/1/log") == b"begun\n"
        assert not await vm.exists("/root/half")
    # Those before may have made room on a small host.
    assert find_kept("layered")[2:] == [("start", True), ("run", False)]


def find_kept(name: str) -> list[tuple[str, bool]]:
    """The words of the steps, and whether a layer of each is kept."""
    rows = json.loads(vmfork("template", "history", name, "--json").check().out)["steps"]
    return [(row["step"].partition(" ")[0], bool(row["mib"])) for row in rows]


@pytest.mark.slow
async def test_the_command_forgets_what_was_kept_and_leaves_a_failed_steps_machine(instance, tmp_path) -> None:
    fetch = "cat /proc/sys/kernel/random/uuid > /root/fetched"
    template, _ = await make("layered", [{"run": fetch}, {"run": "true"}])
    assert find_kept("layered") == [("run", True), ("run", False)]
    async with await template.fork() as vm:
        kept = await vm.read_file("/root/fetched")
    path = tmp_path / "vmfork.toml"
    path.write_text(f'[template.layered]\nsteps = [{{run = "{fetch}"}}, {{run = "touch /root/half; exit 9"}}]\n')
    asked = ("--replace", "--no-cache", "--keep-failed", "--json")
    done = await asyncio.to_thread(vmfork, "template", "build", "-f", str(path), *asked)
    error = json.loads(done.out)["error"]
    assert (done.status, error["message"].startswith("step 2 of 2, run touch /root/half")) == (1, True)
    async with await VM.attach(error["hint"].split("vmfork stop ")[1]) as vm:
        assert await vm.exists("/root/half")
        assert await vm.read_file("/root/fetched") != kept


@pytest.mark.slow
async def test_ensuring_a_recipe_whose_last_step_changed_redoes_that_alone(instance) -> None:
    told: list[str] = []

    async def ensure(*last: str) -> Template:
        told.clear()
        recipe = Recipe(steps=[TWO[0], {"run": last[0] if last else TWO[1]["run"]}])
        return await Template.ensure("layered", recipe=recipe, progress=lambda each: told.append(each.step))

    made = await ensure()
    assert told_by(told)[0].startswith("booting")
    assert (await ensure()).manifest.generation == made.manifest.generation
    assert told_by(told) == []
    template = await ensure("echo three > /root/two")
    assert told_by(told)[0].startswith("going on behind step 1")
    assert [step.reused for step in template.manifest.steps] == [True, False]
    async with await template.fork() as vm:
        assert (await vm.shell("cat /root/one /root/two", check=True)).stdout == "one\nthree\n"


@pytest.mark.slow
async def test_what_two_templates_are_made_of_goes_with_the_last(instance) -> None:
    await make("layered", TWO)
    other, told = await make("layered-other", TWO)
    assert told[0].startswith("going on behind step 1")
    shared = json.loads(vmfork("template", "history", "layered", "--json").check().out)["steps"][0]["shared_with"]
    assert shared == ["layered-other"]
    await remove_template("layered", places=instance)
    assert {layer.name for layer in LayerStore(instance.layers).list_all()} >= set(other.manifest.layers)
    await other.remove()
    assert LayerStore(instance.layers).list_all() == []


@pytest.mark.slow
async def test_a_warm_interpreter_and_a_machine_of_another_size_are_gone_on_from_too(instance) -> None:
    config = VMConfig(memory_mib=320, cpus=2)
    warm = [{"run": "#!python\nnumber = 41"}, {"run": "true"}]
    await make("layered", warm, config=config)
    warm[1] = {"run": "false || true"}
    template, told = await make("layered", warm, config=config, replace=True)
    assert told[0].startswith("going on behind step 1")
    async with await template.fork() as vm:
        assert (await vm.run_code("number + 1")).value == "42"
        assert (await vm.shell("nproc", check=True)).stdout == "2\n"
    _, told = await make("layered", warm, replace=True)
    assert told[0].startswith("booting")  # a smaller one is made of something else


@pytest.mark.slow
async def test_of_two_who_want_one_recipe_at_once_one_builds_it_also_where_another_was_built_before() -> None:
    found = []
    for line in ("cat /proc/sys/kernel/random/uuid > /root/id", "cat /proc/sys/kernel/random/uuid > /root/other"):
        recipe = Recipe(steps=[{"run": line}])
        first, second = await asyncio.gather(*(Template.ensure("layered", recipe=recipe) for _ in range(2)))
        assert first.generation == second.generation
        found.append(first.generation)
    assert found[0] != found[1]


@pytest.mark.slow
def test_of_two_processes_that_want_one_recipe_at_once_one_builds_it(instance) -> None:
    script = (
        "import vmfork\nrecipe = vmfork.Recipe(steps=[{'run': 'true'}])\n"
        "print(vmfork.Template.ensure('layered', recipe=recipe).generation)\n"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env={**os.environ})
        for _ in range(2)
    ]
    said = [each.communicate(timeout=180)[0] for each in both]
    assert [each.returncode for each in both] == [0, 0]
    assert said[0] == said[1] != ""


@pytest.mark.slow
async def test_a_layer_that_goes_or_is_damaged_while_it_is_needed_is_done_without(instance, monkeypatch) -> None:
    await make("layered", TWO)
    real = LayerStore.open_last

    def open_and_lose(self, names):
        found = real(self, names)
        subprocess.run(["rm", "-rf", *(str(path) for path in instance.layers.glob("*/current"))], check=True)
        return found

    monkeypatch.setattr(LayerStore, "open_last", open_and_lose)
    _, told = await make("layered-other", TWO)
    assert told[0].startswith("going on behind step 1")
    monkeypatch.undo()
    keep_each_step(monkeypatch)
    _, told = await make("layered-third", TWO)  # none is left
    assert told[0].startswith("booting")
    for path in instance.layers.glob("*/current/state"):
        path.write_bytes(b"x" * path.stat().st_size)
    _, told = await make("layered-fourth", TWO)
    assert told[0].startswith("booting")


# It kills itself where it is told that, in what its progress says or while it keeps a layer, and keeps each step.
KILLED = """
import os, signal, sys, vmfork
from vmfork.template import layers, making
making.LAYER_WORTH_S = making.LAST_WORTH_S = 0.0
real, where = layers.publish, sys.argv[1]
def end(step):
    if step.startswith(where):
        os.kill(os.getpid(), signal.SIGKILL)
async def publish(staging, facts, recipe, **more):
    end(f"keeping {len(more['steps'])}")
    await real(staging, facts, recipe, **more)
layers.publish = publish
vmfork.Template.build("layered", steps=%r, progress=lambda each: end(each.step))
"""


def kill_at(where: str, instance) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED % STEPS, where], check=False, timeout=120, env={**os.environ}, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    end = time.monotonic() + 60  # its machine ends a moment after it
    while [path for path in left_of(instance.runtime) if "/layers/" not in path]:
        assert time.monotonic() < end
        vmfork("gc").check()


@pytest.mark.slow
def test_a_build_that_is_killed_while_it_keeps_a_layer_leaves_nothing_but_whole_layers(instance) -> None:
    kill_at("keeping 1", instance)
    assert len(LayerStore(instance.layers).list_all()) == 1  # of the boot; what was half made is swept
    told = json.loads(vmfork("gc", "--layers", "--json").check().out)["removed"]
    assert len([path for path in told if "/layers/" in path]) == 1
    assert LayerStore(instance.layers).list_all() == []


@pytest.mark.slow
async def test_a_build_that_is_killed_at_any_step_is_gone_on_with_behind_the_last_one_that_was_kept(instance) -> None:
    layers, kept = TemplateStore(instance.layers), []
    for where in (
        "booting",
        "keeping 0",
        "running 'echo $$",
        "keeping 1",
        "env WHO",
        "keeping 2",
        "start echo",
        "keeping 3",
        "running 'echo $WHO",
        "freezing",
        "recording",
    ):
        kill_at(where, instance)
        assert "layered" not in await Template.list()
        names = layers.list_names()
        assert {layers.verify(name).name for name in names} == set(names)  # each is whole
        kept.append(len(names))
    assert kept == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 4]
    template, told = await make("layered", STEPS)
    assert told[0].startswith("going on behind step 3")
    async with await template.fork() as vm:
        assert await vm.read_file("/root/two") == b"web\n"
        assert (await vm.shell("ps -o args= -C sleep", check=True)).stdout == "sleep 1000\n"


@pytest.mark.slow
async def test_without_the_cache_what_was_kept_is_made_anew_for_later_builds_too(instance) -> None:
    """What a step fetched is old otherwise as soon as a later step changes."""
    fetch, last = {"run": "cat /proc/sys/kernel/random/uuid > /root/fetched"}, {"run": "true"}

    async def build_and_read(*steps: dict, **options) -> bytes:
        template, _ = await make("layered", [*steps], replace=True, **options)
        async with await template.fork() as vm:
            return await vm.read_file("/root/fetched")

    old = await build_and_read(fetch, last)
    assert await build_and_read(fetch, {"run": "echo"}) == old
    new = await build_and_read(fetch, last, cache=False)
    assert new != old
    assert await build_and_read(fetch, {"run": "echo"}) == new

"""The plugin of pytest, on runs of pytest of their own, with real machines."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rules.capabilities import need
from tests.vm.cli_runner import vmfork

pytestmark = [pytest.mark.vm, pytest.mark.limit_s(600)]

EXAMPLE = Path(__file__).parents[2] / "examples" / "suite"
CONFTEST = """
import pytest, vmfork

@pytest.fixture(scope="session")
def vm_template():
    return vmfork.Template.open("{template}")
"""


def run_pytest(folder: Path, *arguments: str, plugins: tuple[str, ...] = ()) -> str:
    """What a run of pytest in `folder` printed; it has no plugin but ours and `plugins`."""
    named = [part for plugin in ("vmfork.testing.plugin", *plugins) for part in ("-p", plugin)]
    argv = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-c",
        os.devnull,
        f"--rootdir={folder}",
        *named,
        "-rA",
        *arguments,
        str(folder),
    ]
    env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(argv, env=env, cwd=folder, capture_output=True, text=True, timeout=500, check=False)
    return done.stdout + done.stderr


SUITE = """
import pytest

@pytest.mark.parametrize("number", range(2))
def test_a_fork_of_its_own(vm, number):
    assert vm.shell("cat /root/marker; echo left > /root/mine").stdout == "warm\\n"
    assert "mine" in vm.shell("ls /root").stdout

@pytest.mark.vmfork(env={"GIVEN": "yes"})
def test_marked(vm_factory):
    one, two = vm_factory(), vm_factory(env={"GIVEN": "no"})
    assert [vm.shell("echo $GIVEN").stdout for vm in (one, two)] == ["yes\\n", "no\\n"]

@pytest.mark.vmfork(2)
def test_wrongly_marked(vm):
    pass

def test_fails(vm):
    vm.write_file("/root/evidence", "it")
    vm.shell("echo said; echo complained >&2; exit 3")
    vm.shell("echo vmfork-agent: noted > /dev/console; seq 100 > /dev/console")
    with vm.start(["sh", "-c", "echo begun; echo taken; exit 4"]) as ends:
        assert next(iter(ends.output()))
        ends.wait()
    left = vm.start(["sh", "-c", "echo never read; exec sleep 1000"])
    while not left.unread:
        vm.ping()
    with vm.start(["sleep", "2000"]):
        assert False

@pytest.mark.asyncio
async def test_fails_async(avm):
    vm = await avm()
    await vm.exec(["echo", "awaited"])
    async with vm.start(["sh", "-c", "echo of the loop; exit 5"]) as process:
        await process.wait()
    async for event in vm.stream(["echo", "streamed"]):
        pass
    assert (await vm.exec(["false"])).ok

@pytest.fixture
def anyio_backend():
    return "asyncio"

@pytest.mark.anyio
async def test_of_anyio(avm):
    assert (await (await avm()).shell("cat /root/marker")).stdout == "warm\\n"

@pytest.mark.anyio
async def test_fails_anyio(avm):
    await (await avm()).write_file("/root/evidence", "it")
    assert False

@pytest.mark.anyio
async def test_skipped(avm):
    await avm()
    raise pytest.skip.Exception("no failure")
"""


def test_each_test_has_its_machines_and_a_failed_ones_are_told_of_and_kept(tmp_path, template_name) -> None:
    need("anyio")
    (tmp_path / "conftest.py").write_text(CONFTEST.replace("{template}", template_name))
    (tmp_path / "test_suite.py").write_text(SUITE)
    said = run_pytest(tmp_path, "--vmfork-keep", plugins=("pytest_asyncio.plugin", "anyio"))
    kept = re.findall(r"vmfork shell (\S+)", said)
    try:
        assert "3 failed, 4 passed, 1 skipped, 1 error" in said, said
        assert "takes its arguments by name" in said
        for told in (
            "[console]",
            "[agent]\nvmfork-agent: noted\n[program]",
            "exit status 3\n    stdout: said\n    stderr: complained\n",
            "exit 4']): exit status 4\n    stdout: begun\n",
            "exec sleep 1000']): has not ended\n    stdout: never read\n",
            "start(['sleep', '2000']): ran until it was closed\n",
            "stdout: awaited",
            "exit 5']): exit status 5\n    stdout: of the loop\n",
            "stream(['echo', 'streamed']): exit status 0\n    stdout: streamed\n",
        ):
            assert told in said, (told, said)
        assert len(kept) == 3, said
        for name in kept[0], kept[-1]:
            assert vmfork("exec", name, "cat", "/root/evidence").check().out == "it"
    finally:
        for name in kept:
            vmfork("stop", name)


GENERATION = """
import pytest

@pytest.mark.parametrize("number", range(4))
def test_of_which(vm_template, number):
    print("generation", vm_template.manifest.generation)
"""


@pytest.fixture
def suite(instance, tmp_path):
    """The example, with tests that tell which template they have."""
    folder = shutil.copytree(EXAMPLE, tmp_path / "suite", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "test_generation.py").write_text(GENERATION)
    yield folder
    vmfork("template", "rm", "example-shop")


def test_the_example_passes_and_its_workers_build_one_template(suite) -> None:
    said = run_pytest(suite, "-n", "2", plugins=("xdist",))
    assert "9 passed" in said, said
    assert len(set(re.findall(r"generation (\S+)", said))) == 1


AWAITING = """
import pytest

@pytest.fixture
def anyio_backend():
    return "asyncio"

async def count(vm):
    return (await vm.run_code("count('ink')", check=True)).value

@pytest.mark.asyncio
@pytest.mark.parametrize("number", range(4))
async def test_of_asyncio(avm, number):
    one, two = await avm(), await avm()
    await one.run_code("sell('ink')", check=True)
    assert [await count(one), await count(two)] == ["0", "1"]

@pytest.mark.anyio
@pytest.mark.parametrize("number", range(4))
async def test_of_anyio(avm, number):
    assert await count(await avm()) == "1"

def test_fails(vm):
    vm.write_file("/root/evidence", "it")
    assert False
"""


@pytest.mark.slow
def test_four_workers_share_a_template_also_where_tests_await_and_keep_what_failed(suite) -> None:
    need("anyio")
    (suite / "test_awaiting.py").write_text(AWAITING)
    plugins = ("xdist", "pytest_asyncio.plugin", "anyio")
    said = run_pytest(suite, "-n", "4", "--vmfork-keep", plugins=plugins)
    kept = re.findall(r"vmfork shell (\S+)", said)
    try:
        assert "1 failed, 17 passed" in said, said
        assert len(set(re.findall(r"generation (\S+)", said))) == 1
        assert len(kept) == 1, said
        assert vmfork("exec", kept[0], "cat", "/root/evidence").check().out == "it"
    finally:
        for name in kept:
            vmfork("stop", name)


ROUNDS = 30
COST = """
import time

begun, by_hand, by_fixture = [], [], []

def test_warm(vm_template):
    for _ in range(5):
        vm_template.fork().close()
"""
# In turns: what else the host does at the time is in both.
ROUND = """
def test_begins_{number}():
    begun.append(time.perf_counter())

def test_with_the_fixture_{number}(vm):
    pass

def test_by_hand_{number}(vm_template):
    now = time.perf_counter()
    by_fixture.append(now - begun[-1])
    vm_template.fork().close()
    by_hand.append(time.perf_counter() - now)
"""
TOLD = """
def test_told():
    print("by hand", sorted(by_hand)[len(by_hand) // 2])
    print("by fixture", sorted(by_fixture)[len(by_fixture) // 2])
"""


@pytest.mark.slow
def test_a_test_costs_at_most_a_tenth_more_than_its_fork(tmp_path, template_name, capsys) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST.replace("{template}", template_name))
    rounds = [ROUND.format(number=number) for number in range(ROUNDS)]
    (tmp_path / "test_cost.py").write_text("".join([COST, *rounds, TOLD]))
    said = run_pytest(tmp_path)
    by_hand, by_fixture = (float(re.findall(rf"by {kind} (\S+)", said)[0]) for kind in ("hand", "fixture"))
    with capsys.disabled():
        print(f"\na fork by hand: {by_hand * 1000:.0f} ms, a test with the fixture: {by_fixture * 1000:.0f} ms")
    assert by_fixture <= 1.1 * by_hand

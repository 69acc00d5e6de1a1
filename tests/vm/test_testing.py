"""The plugin of pytest, on runs of pytest of their own, with real machines."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rules.capabilities import need
from tests.vm.cli_runner import vmfork

pytestmark = [pytest.mark.vm, pytest.mark.limit_s(600)]

EXAMPLE = Path(__file__).parents[2] / "examples" / "suite"
CONFTEST = """
import pytest

@pytest.fixture(scope="session")
def vm_template(vm_build):
    return vm_build("plugin", warm_up=["echo built >> /root/built"])
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


@pytest.fixture
def suite(tmp_path, template_name):
    """A folder for tests, and a template that they make, which is gone afterwards."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    yield tmp_path
    vmfork("template", "rm", "plugin")


PASSING = """
import os
import pytest

@pytest.mark.parametrize("number", range(4))
def test_a_fork_of_its_own(vm, number):
    assert vm.shell("cat /root/built; echo left > /root/mine").stdout == "built\\n"
    assert vm.shell("ls /root").stdout.split() == ["built", "mine"]

@pytest.mark.vmfork(env={"GIVEN": "yes"}, template="{template}")
def test_marked(vm_factory):
    one, two = vm_factory(), vm_factory(env={{"GIVEN": "no"}})
    assert [vm.shell("echo $GIVEN; cat /root/marker").stdout for vm in (one, two)] == ["yes\\nwarm\\n", "no\\nwarm\\n"]
"""


def test_workers_build_one_template_and_each_test_has_a_fork(suite, template_name) -> None:
    text = PASSING.replace("{template}", template_name).replace("{{", "{").replace("}}", "}")
    (suite / "test_passing.py").write_text(text)
    said = run_pytest(suite, "-n", "2", plugins=("xdist",))
    assert "5 passed" in said, said
    (suite / "test_one.py").write_text("@__import__('pytest').mark.vmfork(2)\ndef test_wrong(vm): pass")
    assert "takes its arguments by name" in run_pytest(suite, "-k", "wrong")


FAILING = """
def test_fails(vm):
    vm.write_file("/root/evidence", "it")
    vm.shell("echo said; echo complained >&2; exit 3")
    assert False

async def test_fails_async(avm):
    vm = await avm()
    await vm.exec(["echo", "awaited"])
    assert (await vm.run_code("1 / 0")).ok
"""


def test_a_failure_has_what_its_machine_said_and_the_machine_can_be_kept(suite) -> None:
    (suite / "test_failing.py").write_text(FAILING)
    said = run_pytest(suite, "--vmfork-keep", "-o", "asyncio_mode=auto", plugins=("pytest_asyncio.plugin",))
    assert "2 failed" in said, said
    for told in ("[console]", "exit status 3", "stdout: said", "stderr: complained", "stdout: awaited", "ZeroDivision"):
        assert told in said, said
    kept = re.findall(r"vmfork shell (\S+)", said)
    try:
        assert len(kept) == 2, said
        assert vmfork("exec", kept[0], "cat", "/root/evidence").check().out == "it"
    finally:
        for name in kept:
            vmfork("stop", name)


ANYIO = """
import pytest

pytestmark = pytest.mark.anyio

@pytest.fixture
def anyio_backend():
    return "asyncio"

async def test_awaits(avm):
    vm = await avm()
    assert (await vm.shell("cat /root/built")).stdout == "built\\n"
"""


def test_tests_of_anyio_have_machines_too(suite) -> None:
    need("anyio")
    (suite / "test_anyio.py").write_text(ANYIO)
    said = run_pytest(suite, plugins=("anyio",))
    assert "1 passed" in said, said


@pytest.mark.parametrize("workers", ["2", pytest.param("4", marks=pytest.mark.slow)])
def test_the_example_passes(instance, workers) -> None:
    try:
        said = run_pytest(EXAMPLE, "-n", workers, plugins=("xdist",))
        assert "5 passed" in said, said
    finally:
        vmfork("template", "rm", "example-shop")

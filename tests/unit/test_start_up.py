"""What loads when, by name and not by time: a fork takes tens of milliseconds, an import can take more than that."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from vmfork.cli.main import _COMMANDS, _Commands, module_of

REPORT = "\nimport sys; print('\\n'.join(sys.modules), file=sys.stderr)"
HELP = "import sys; sys.argv = ['vmfork', *{args}]\nfrom vmfork.__main__ import main\nassert main() == 0"

# What a start may not load: the event loop, the server's and the monitor's packages, the drawer of progress bars.
HEAVY = ("asyncio", "grpc", "qemu.qmp", "rich")


def modules_after(code: str) -> set[str]:
    run = subprocess.run([sys.executable, "-c", code + REPORT], capture_output=True, text=True, check=True, timeout=60)
    return set(run.stderr.splitlines())


def loaded(modules: set[str], names: tuple[str, ...]) -> list[str]:
    return [name for name in modules if any(name == heavy or name.startswith(f"{heavy}.") for heavy in names)]


def test_the_bare_import_loads_nothing_of_the_package_but_its_door() -> None:
    modules = modules_after("import vmfork, vmfork.aio")
    assert loaded(modules, (*HEAVY, "click")) == []
    assert {name for name in modules if name.startswith("vmfork")} == {"vmfork", "vmfork.aio", "vmfork.late"}


@pytest.mark.parametrize("name", ["VMConfig", "TemplateStale"])
def test_values_and_errors_come_without_the_event_loop(name) -> None:
    assert loaded(modules_after(f"import vmfork; vmfork.{name}"), (*HEAVY, "click")) == []


@pytest.mark.parametrize("args", [["--help"], ["--version"]])
def test_help_loads_no_command(args) -> None:
    modules = modules_after(HELP.format(args=args))
    assert loaded(modules, HEAVY) == []
    assert loaded(modules, tuple(map(module_of, _COMMANDS))) == []


def test_a_fork_needs_neither_monitor_nor_bar() -> None:
    modules = modules_after("import vmfork; vmfork.Template.fork")
    assert "asyncio" in modules
    assert loaded(modules, ("grpc", "qemu.qmp", "rich", "click", "tomllib")) == []
    # A constant of theirs would bring all that images are made with, a third of the time that it takes.
    assert loaded(modules, ("vmfork.container", "vmfork.image.rootfs", "vmfork.oci", "vmfork.travel.images")) == []


def test_the_help_says_of_each_command_what_the_command_says() -> None:
    for name, summary in _COMMANDS.items():
        command = importlib.import_module(module_of(name)).command
        assert command.get_short_help_str(limit=200).rstrip(".") == summary.rstrip("."), name
        assert _Commands().get_command(None, name) is command


def test_the_plugin_of_pytest_loads_nothing_of_the_package_but_itself() -> None:
    """Every run of pytest in the environment pays for it, whether or not a test asks for a machine."""
    modules = modules_after("import pytest, vmfork.testing.plugin")
    ours = {name for name in modules if name.startswith("vmfork")}
    assert ours == {"vmfork", "vmfork.late", "vmfork.testing", "vmfork.testing.plugin"}
    assert loaded(modules, ("grpc", "qemu.qmp", "click")) == []


def test_pytest_finds_the_plugin() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"vmfork": "vmfork.testing.plugin"}

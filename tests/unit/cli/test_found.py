"""A machine that is nowhere is said to be nowhere, by every command that takes one."""

from __future__ import annotations

import json
import threading

import pytest

import vmfork
from tests.at_terminal import AtTerminal
from tests.unit.machine.test_ended import leave, vms  # noqa: F401 - a fixture
from tests.vm.cli_runner import COMMAND
from vmfork.cli.main import main
from vmfork.errors import VMNotFound
from vmfork.host.lock import FileLock
from vmfork.machine.folder import LOCK


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("VMFORK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VMFORK_RUNTIME_DIR", str(tmp_path / "run"))


@pytest.mark.parametrize("verb", ["show", "logs", "wait", "stop", "pause", "resume", "resize --cpus 1", "debug-bundle"])
@pytest.mark.parametrize("text", ["no-such-vm", "0123456789a"])
def test_the_verb_says_so(capsys, verb, text) -> None:
    assert main([*verb.split(), text, "--json"]) == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out)["error"]["code"] == "vm-not-found"
    assert f"error: there is no VM '{text}'" in shown.err
    assert "owner" not in shown.err
    assert "hint: vmfork ps -a" in shown.err


@pytest.mark.parametrize("verb", ["show", "wait"])
def test_one_that_ends_at_this_moment_is_told_of_once_it_has(vms, capsys, verb) -> None:  # noqa: F811
    """Its process has ended, and its keeper has its folder still: it is neither among the living nor the ended."""
    vm_id = leave(vms)
    keeper = FileLock.try_acquire(vms / vm_id / LOCK, must_exist=True)
    assert keeper is not None
    end = threading.Timer(0.5, keeper.close)
    end.start()
    try:
        assert main([verb, vm_id, "--json"]) == 0
    finally:
        end.join()
    assert json.loads(capsys.readouterr().out)["reason"] == "it was stopped"


def test_exec_says_so(capsys) -> None:
    assert main(["exec", "no-such-vm", "true"]) == 125
    assert "there is no VM 'no-such-vm'" in capsys.readouterr().err


def test_shell_says_so() -> None:
    with AtTerminal(*COMMAND, "shell", "no-such-vm") as at:
        at.wait_for("there is no VM 'no-such-vm'")
        assert at.end()[0] == 125


def test_python_says_so_in_its_own_words() -> None:
    with pytest.raises(VMNotFound) as error:
        vmfork.VM.connect("no-such-vm")
    assert "VM.list()" in error.value.hint


def test_exec_without_a_command_says_what_is_missing(capsys) -> None:
    assert main(["exec", "some-vm", "--"]) == 125
    assert "no command was given" in capsys.readouterr().err

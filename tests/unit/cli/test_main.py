"""Exit statuses and messages of the command line, as far as no machine is needed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from vmfork.cli.main import main


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VMFORK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VMFORK_RUNTIME_DIR", str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["--version"], 0),
        (["--help"], 0),
        (["nonsense"], 2),
        (["template", "rm", "../x"], 2),
        (["template", "show", "none"], 1),
        (["image", "rm", "none"], 1),
        (["run"], 125),
        (["run", "-d"], 125),
        (["run", "--image", "x", "-t", "y", "true"], 125),
        (["run", "--nonsense", "true"], 125),
        (["run", "-t", "none", "true"], 125),
        (["run", "--memory", "huge", "true"], 125),
        (["run", "--timeout", "0", "true"], 125),
        (["run", "-e", "=x", "true"], 125),
        (["factory", "init"], 2),
        (["factory", "status"], 3),
        (["factory", "destroy"], 0),
    ],
)
def test_exit_status(argv, status, capfd):
    assert main(argv) == status
    err = capfd.readouterr().err
    assert "Traceback" not in err
    assert err.startswith("error: ") == (status in {1, 2, 125})


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["template", "rm", "../x", "--json"], "config"),
        (["template", "show", "--json", "none"], "template-not-found"),
        (["template", "show", "--json", "none", "--nonsense"], "usage"),
        (["image", "rm", "none", "--json"], "image-not-found"),
        (["run", "--json"], "usage"),
        (["run", "--json", "--nonsense", "true"], "usage"),
        (["run", "--cpus", "x", "--json", "true"], "usage"),
        (["run", "--json", "-t", "none", "true"], "template-not-found"),
        (["run", "--json", "--timeout", "0", "true"], "config"),
        (["factory", "init", "--json"], "config"),
    ],
)
def test_a_failure_is_the_one_json_document_that_was_asked_for(argv, code, capfd):
    assert main(argv) in {1, 2, 125}
    out, err = capfd.readouterr()
    error = json.loads(out)["error"]
    assert error["code"] == code
    assert err.startswith(f"error: {error['message']}")
    assert f"hint: {error['hint']}" in err


def test_what_was_asked_of_a_guest_is_not_asked_of_us(capfd):
    assert main(["run", "-t", "none", "--", "cmd", "--json"]) == 125
    assert capfd.readouterr().out == ""


def test_output_that_is_lost_is_no_success(tmp_path):
    """`vmfork config >&-`: descriptor 1 is closed."""
    command = [sys.executable, "-m", "vmfork", "config"]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *command], stderr=subprocess.PIPE, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "error: standard output is closed, and there was something to print\n"


def test_config_prints_json_with_origins(capfd, monkeypatch):
    monkeypatch.setenv("VMFORK_VM_CPUS", "2")
    assert main(["config", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)["settings"]
    assert found["vm.cpus"] == {"value": 2, "origin": "VMFORK_VM_CPUS"}


@pytest.mark.parametrize("argv", [[], ["template"]])
def test_without_a_command_the_help_is_shown_as_no_error(argv, capfd):
    assert main(argv) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("Usage: ")
    assert "Commands:" in err


def test_config_takes_a_file_before_or_after_its_name(capfd, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[vm]\ncpus = 3\n")
    for argv in (["--config", str(file), "config"], ["config", "--config", str(file)]):
        assert main(argv) == 0
        assert f"vm.cpus                {file}  3\n" in capfd.readouterr().out


@pytest.mark.parametrize("group", ["template", "image", "factory"])
def test_a_help_cuts_no_sentence(group, capfd):
    assert main([group, "--help"]) == 0
    verbs = capfd.readouterr().out.partition("Commands:")[2]
    assert "..." not in verbs
    assert verbs.rstrip().endswith(".")

"""Exit statuses and messages of the command line, as far as no machine is needed."""

from __future__ import annotations

import json

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


def test_config_prints_json_with_origins(capfd, monkeypatch):
    monkeypatch.setenv("VMFORK_VM_CPUS", "2")
    assert main(["config", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)["settings"]
    assert found["vm.cpus"] == {"value": 2, "origin": "VMFORK_VM_CPUS"}

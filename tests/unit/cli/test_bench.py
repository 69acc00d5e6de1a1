"""`vmfork bench` as far as no machine is needed: what it refuses, and how a look is shown."""

from __future__ import annotations

import pytest

from vmfork.cli.main import main


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VMFORK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VMFORK_RUNTIME_DIR", str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("argv", "status", "reason"),
    [
        (["--rounds", "0"], 2, "range"),
        (["-t", "../x"], 2, "../x"),
        (["-t", "none"], 1, "none"),
        (["--only", "fork"], 2, "No such option"),
    ],
)
def test_wrong_input_is_told_and_nothing_is_measured(argv, status, reason, capfd):
    assert main(["bench", *argv]) == status
    err = capfd.readouterr().err
    assert err.startswith("error: ")
    assert reason in err


def test_without_qemu_it_says_what_to_install(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["bench"]) == 1
    err = capfd.readouterr().err
    assert "hint: " in err
    assert "bug" not in err

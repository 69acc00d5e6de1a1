"""The suite's command line as far as no machine is needed: what it refuses, and what it does with given results."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from benchmarks.suite.__main__ import command
from tests.unit.benchmarks.samples import run_of, slower
from vmfork.cli.main import exit_status_of


def main(argv):
    return exit_status_of(command, argv, name="suite")


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VMFORK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VMFORK_RUNTIME_DIR", str(tmp_path / "run"))
    run_of().write(tmp_path / "a.json")
    run_of(slower(1.5)).write(tmp_path / "b.json")
    (tmp_path / "nonsense.json").write_text("nonsense")
    (tmp_path / "other.json").write_text(json.dumps({"format": 0}))


@pytest.mark.parametrize(
    ("argv", "status", "reason"),
    [
        (["--only", "nonsense"], 2, "no measurement is called"),
        (["--rounds", "0"], 2, "range"),
        (["--compare", "a.json"], 2, "requires 2 arguments"),
        (["--compare", "a.json", "none.json"], 2, "No such file"),
        (["--compare", "nonsense.json", "a.json"], 2, "not JSON"),
        (["--from", "other.json"], 2, "format is 0, and this vmfork reads 1"),
        (["--check", "other.json"], 2, "format is 0, and this vmfork reads 1"),
        (["--from", "a.json", "--report", "."], 2, "no document there"),
        (["--peers", "nonsense"], 2, "nonsense"),
    ],
)
def test_wrong_input_is_told_and_nothing_is_measured(argv, status, reason, capfd):
    assert main(argv) == status
    err = capfd.readouterr().err
    assert err.startswith("error: ")
    assert reason in err


def test_without_qemu_it_says_what_to_install(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["--only", "fork"]) == 1
    err = capfd.readouterr().err
    assert "error: " in err
    assert "hint: " in err
    assert "bug" not in err


def test_the_measurements_are_listed(capfd):
    assert main(["--list"]) == 0
    assert "Taking a machine from a pool" in capfd.readouterr().out


def test_a_result_is_shown_row_by_row(capfd):
    assert main(["--from", "a.json"]) == 0
    out = capfd.readouterr().out
    assert "fork, over raw" in out
    assert "at most 1.15" in out
    assert "reached" in out


def test_two_results_are_compared(capfd):
    assert main(["--compare", "a.json", "b.json"]) == 0
    out = capfd.readouterr().out
    assert "1.500" in out
    assert "worse" in out


@pytest.mark.parametrize(("given", "status"), [("a.json", 0), ("b.json", 5)])
def test_a_check_fails_where_a_ratio_got_worse(given, status, capfd):
    assert main(["--from", given, "--check", "a.json"]) == status
    out, err = capfd.readouterr()
    assert ("worse than the baseline" in err) == (status == 5)
    assert ("no ratio is worse" in out) == (status == 0)


def test_a_check_fails_where_a_measurement_failed(tmp_path, capfd):
    """A peer that is not installed is no regression; a measurement that went wrong was taken for one."""
    run = run_of()
    (name,) = run.measures
    failed = replace(run.measures[name], status="failed: RuntimeError: no such program", samples={})
    replace(run, measures={name: failed}, rows=()).write(tmp_path / "failed.json")
    assert main(["--from", "failed.json", "--check", "a.json"]) == 5
    assert "failed: RuntimeError: no such program" in capfd.readouterr().err

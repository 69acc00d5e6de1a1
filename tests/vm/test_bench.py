"""The quick look and the suite on real machines: the shape of what they give, never times; and that nothing is left."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

from tests.vm.cli_runner import Running, left_of, run, vmfork

pytestmark = pytest.mark.vm

ROOT = Path(__file__).parents[2]
SUITE = (sys.executable, "-m", "benchmarks.suite")


def test_a_look_shows_a_fork_beside_the_same_by_hand(template_name, instance):
    done = vmfork("bench", "-t", template_name, "--rounds", "3", "--json").check()
    look = json.loads(done.out)
    assert (look["template"], look["rounds"]) == (template_name, 3)
    for side in ("fork", "first_exec", "raw"):
        assert len(look["samples_s"][side]) == 3
        figure = look["figures"][f"{side}_s"]
        assert 0 < figure["low"] <= figure["value"] <= figure["high"] < 60
    assert look["figures"]["ratio"]["value"] > 0.5
    assert look["machine"]["cores"] >= 1
    assert left_of(instance.runtime) == []


def test_a_look_is_a_table(template_name, instance):
    out = vmfork("bench", "-t", template_name, "--rounds", "1").check().out
    assert "fork to first exec, over the raw baseline" in out
    assert "rounds: 1" in out
    assert left_of(instance.runtime) == []


def test_a_quick_run_of_the_suite_gives_every_row_of_what_was_asked(template_name, instance, tmp_path):
    target = tmp_path / "run.json"
    asked = ("--quick", "--only", "fork", "--only", "import", "--rounds", "2", "--json", str(target))
    done = run(*SUITE, *asked, cwd=ROOT).check()
    assert "fork to first exec, over the raw baseline" in done.out
    assert "round 2 of 2" in done.err
    found = json.loads(target.read_text())
    samples = found["measures"]["fork"]["samples"]
    for side in ("raw", "raw_not_adopted", "first_exec", "spawn", "load", "adopt", "exec"):
        assert len(samples[side]) == 2, side
        assert all(0 < value < 60 for value in samples[side]), side
    assert {row["verdict"] for row in found["rows"]} <= {"", "reached", "missed"}
    assert found["versions"]["qemu"]
    assert found["machine"]["cores"] >= 1
    assert not (instance.runtime / "bench").exists()
    assert left_of(instance.runtime) == []


def test_ctrl_c_ends_the_suite_and_leaves_nothing(template_name, instance):
    with Running("--quick", "--only", "fork", command=SUITE, cwd=ROOT) as running:
        running.wait_for("round 1 of")
        running.interrupt(signal.SIGINT)
        assert running.end().status == 130
    assert not (instance.runtime / "bench").exists()
    assert left_of(instance.runtime) == []

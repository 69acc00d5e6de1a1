"""The benchmark suite on real machines: the shape of what it gives, never its times; and that nothing is left."""

from __future__ import annotations

import json
import signal

import pytest
from cli_runner import Running, left_of, vmfork

pytestmark = pytest.mark.vm


def test_a_quick_run_gives_every_row_of_what_was_asked(template_name, instance, tmp_path):
    target = tmp_path / "run.json"
    done = vmfork(
        "bench", "--quick", "--only", "fork", "--only", "import", "--rounds", "2", "--json", str(target)
    ).check()
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


def test_ctrl_c_ends_it_and_leaves_nothing(template_name, instance):
    with Running("bench", "--quick", "--only", "fork") as running:
        running.wait_for("round 1 of")
        running.interrupt(signal.SIGINT)
        assert running.end().status == 130
    assert not (instance.runtime / "bench").exists()
    assert left_of(instance.runtime) == []

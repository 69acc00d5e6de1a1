"""Pictures: drawn where there are samples, the same each time, and refused with a word without matplotlib."""

from __future__ import annotations

import sys

import pytest

from benchmarks.suite.plots import draw
from tests.unit.benchmarks.samples import MEASURE, run_of
from vmfork.errors import HostError


@pytest.mark.needs("matplotlib")
def test_each_kind_is_drawn_and_what_has_no_samples_is_not(tmp_path):
    drawn = draw(run_of(), [MEASURE], tmp_path / "new" / "folder")
    assert {path.name for path in drawn} == {f"{name}.svg" for name in ("bars", "stack", "spread", "line")}
    assert all(path.stat().st_size > 1000 for path in drawn)


@pytest.mark.needs("matplotlib")
def test_the_same_run_gives_the_same_picture(tmp_path):
    first, second = (draw(run_of(), [MEASURE], tmp_path / name)[0].read_bytes() for name in ("a", "b"))
    assert first == second


def test_without_matplotlib_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(HostError) as found:
        draw(run_of(), [MEASURE], tmp_path)
    assert "pip install" in found.value.hint

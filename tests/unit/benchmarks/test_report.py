"""Numbers in documents come from results."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.suite.report import DOCUMENTS, fill, fill_documents
from benchmarks.suite.result import read_result
from tests.unit.benchmarks.samples import RAW, run_of
from vmfork.errors import ConfigError

ROOT = Path(__file__).parents[3]
RUNS = sorted((ROOT / "benchmarks").glob("baseline*.json"))


def place(name: str, content: str = "old\n") -> str:
    return f"before\n<!-- bench:{name} -->\n{content}<!-- /bench -->\nafter\n"


def test_a_place_is_filled_and_what_is_around_it_stays():
    text = fill(place("table"), run_of())
    assert text.startswith("before\n<!-- bench:table -->\n| figure |")
    assert text.endswith("|\n<!-- /bench -->\nafter\n")
    assert "| fork, over raw | 1.10 | " in text
    assert fill(text, run_of()) == text


def test_what_missed_its_target_is_told_with_what_bounds_it():
    assert "All of them are reached." in fill(place("missed"), run_of())
    text = fill(place("missed"), run_of({"fork": [0.2], "raw": [0.1]}))
    assert "- fork, over raw: 2.00, missed by 73.9% (target: at most 1.15). Python." in text
    assert "not run, no samples of fork" in fill(place("missed"), run_of({"raw": RAW}))


def test_where_it_was_measured_is_told():
    text = fill(place("source"), run_of())
    assert "2026-01-31" in text
    assert "QEMU 7.2.22 with TCG" in text


@pytest.mark.parametrize("name", ["nonsense", "table:nonsense"])
def test_an_unknown_place_is_refused(name):
    with pytest.raises(ConfigError, match="no part of a report is called 'nonsense'"):
        fill(place(name), run_of())


def test_what_is_in_no_whole_run_has_places_of_its_own():
    both, asked = place("table") + place("table:asked"), replace(run_of(), is_asked_for=True)
    assert fill(both, run_of()) == fill(place("table"), run_of()) + place("table:asked")
    assert fill(both, asked) == place("table") + fill(place("table:asked"), asked)
    assert "| fork, over raw | 1.10 | " in fill(both, asked)


def test_documents_without_a_place_are_left_alone(tmp_path):
    (tmp_path / "README.md").write_text("nothing\n")
    assert fill_documents(run_of(), tmp_path) == []


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize("run", RUNS, ids=lambda path: path.stem)
def test_the_documents_say_what_the_committed_runs_say(run, name):
    text = (ROOT / name).read_text()
    assert fill(text, read_result(run)) == text


def test_every_picture_is_shown_and_every_shown_one_is_there():
    page = (ROOT / "docs" / "performance.md").read_text()
    shown = {part.partition(")")[0] for part in page.split("](performance/")[1:]}
    assert shown == {path.name for path in (ROOT / "docs" / "performance").iterdir()}

"""The measurements there are: one file each, complete, and none of vmfork in what vmfork is measured against."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.suite import measures
from benchmarks.suite.figures import AT
from benchmarks.suite.peers import quicksand_driver, raw_tunnel
from benchmarks.suite.registry import find_measures
from benchmarks.suite.report import SHORT
from vmfork.bench import raw
from vmfork.errors import ConfigError

ALL = find_measures([""])

# What must be reached: (row, at most, at least).
TARGETS = {
    "fork.first-exec": (1.15, None),
    "peer-boot.speedup": (None, 25),
    "peer-loadvm.speedup": (None, 1.3),
    "peer-quicksand.speedup": (None, 100),
    "concurrency.16": (1.15, None),
    "rate.concurrency-4": (None, 0.9),
    "ram.8g": (1.1, 0.9),
    "memory.raw": (1.1, None),
    "memory.booted": (0.3, None),
    "memory.guest-shared": (None, 90),
    "pool.take": (1.5, None),
    "pool.time": (10, None),
    "pool.p99": (40, None),
    "clients.rate": (1.3, None),
    "idle.cpu": (1, None),
    "cli.overhead": (100, None),
    "import.vmfork": (60, None),
    "ports.connect-raw": (1.25, None),
    "ports.echo-raw": (1.25, None),
    "ports.out": (None, 0.9),
    "ports.in": (None, 0.9),
    "served.20": (1.3, None),
    "live.pause-idle": (5, None),
    "live.pause-writing": (6, None),
    "live.size": (1.2, None),
    "live.one": (1.4, None),
    "live.back": (1.2, None),
    "live.all": (1.25, None),
    "live.memory": (1.25, None),
    "recipe.change": (1.5, None),
    "recipe.ensure": (1.2, None),
    "travel.save-raw": (None, 0.7),
    "travel.load-raw": (None, 0.7),
    "pushed.push-raw": (None, 0.7),
    "pushed.pull-raw": (None, 0.7),
    "pushed.child-sent": (3, None),
    "cluster.first": (1, None),
    "cluster.exec": (1, None),
    "cluster.lost": (0, None),
    "cluster.doubled": (0, None),
    "cluster.spread": (0.2, None),
    "cluster.transfer": (None, 0.8),
    "placement.any": (1, None),
    "placement.label": (1, None),
    "placement.node": (1, None),
    "placement.spread-node": (1, None),
    "placement.spread-zone": (1, None),
    "placement.full": (1, None),
    "code.product": (None, 5),
    "code.calls": (1.3, None),
    "code.tests": (1.1, None),
}


def test_every_file_of_the_folder_is_a_measurement():
    files = [path for path in Path(measures.__file__).parent.glob("*.py") if path.name != "__init__.py"]
    assert len(ALL) == len(files)


def test_every_target_has_its_row():
    targets = {row.key: row.target for measure in ALL for row in measure.rows if row.target}
    found = {key: (target.at_most, target.at_least) for key, target in targets.items()}
    assert {key: found.get(key) for key in TARGETS} == TARGETS


def test_keys_and_names_are_unique_and_say_whose_they_are():
    keys = [row.key for measure in ALL for row in measure.rows]
    assert len(keys) == len(set(keys))
    assert all(row.key.startswith(f"{measure.name}.") for measure in ALL for row in measure.rows)
    plots = [plot.name for measure in ALL for plot in measure.plots]
    assert len(plots) == len(set(plots))


def test_what_has_a_target_says_what_bounds_it():
    assert [row.key for measure in ALL for row in measure.rows if row.target and not row.bounds] == []


def test_a_whole_run_fits_its_time():
    whole = find_measures()
    assert sum(measure.budget_s for measure in whole) <= 14 * 60
    asked_for = [
        "cluster", "code", "container", "copies", "disk", "network", "placement", "ports", "pushed", "recipe",
        "served", "use",
    ]  # fmt: skip
    assert [measure.name for measure in ALL if measure not in whole] == asked_for


def test_what_readme_tells_is_measured_first():
    """Where time runs out, others are missing."""
    told = [any(row.key in SHORT for row in measure.rows) for measure in find_measures()]
    assert told == sorted(told, reverse=True)
    assert {key for measure in find_measures() for key in (row.key for row in measure.rows)} >= {*SHORT}


@pytest.mark.parametrize("measure", ALL, ids=lambda measure: measure.name)
def test_only_lines_are_drawn_along_an_axis(measure):
    for plot in measure.plots:
        assert all(AT not in side for side in plot.sides)
        assert plot.log_x is False or plot.kind == "line"


def test_names_pick_one_or_several():
    assert [measure.name for measure in find_measures(["fork"])] == ["fork"]
    assert {measure.name for measure in find_measures(["peer"])} == {
        "peer-boot",
        "peer-libvirt",
        "peer-loadvm",
        "peer-quicksand",
    }


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match="no measurement is called 'nonsense'") as found:
        find_measures(["fork", "nonsense"])
    assert "fork" in found.value.hint


@pytest.mark.parametrize("module", [raw, raw_tunnel, quicksand_driver], ids=lambda module: module.__name__)
def test_what_vmfork_is_measured_against_has_none_of_vmfork(module):
    assert re.findall(r"^\s*(?:from|import) vmfork", Path(module.__file__).read_text(), re.MULTILINE) == []

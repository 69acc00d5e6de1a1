"""The cluster's placement over simulated nodes: it runs as it is, and what it counts is what happened."""

from __future__ import annotations

import json

from click.testing import CliRunner

from benchmarks import placement


def test_what_nodes_have_is_what_they_were_given() -> None:
    """No node promises more than it has, and of one that died nothing is left, in the simulation as in placement."""
    simulation = placement.Simulation(nodes=9, templates=4, deaths=3, utilisation=4.0, seconds=30.0, seed=2)
    tally = simulation.run()
    waiting = 0
    for name, node in simulation.nodes.items():
        offer = node.offer
        assert offer is simulation._offers[name]
        assert offer.to_give_mib == offer.total_mib - offer.running * placement._SHARE_MIB >= 0
        assert offer.waiting == len(node.queue)
        waiting += offer.waiting
        for wanted in simulation.templates:
            assert (name in simulation._holders[wanted.digest]) == (wanted.digest in offer.templates)
    assert tally.lost > 0
    assert tally.transfers > 0
    assert max(tally.waits_s) > 0.1  # more was asked for than there is
    assert tally.refused == 0
    assert tally.asked == tally.given + waiting


def test_its_figures_are_told_as_a_table_and_as_json(monkeypatch) -> None:
    monkeypatch.setattr(placement, "_ASKED", 5)
    few = ["--nodes", "5", "--templates", "3", "--deaths", "1", "--seconds", "2"]
    shown = CliRunner().invoke(placement.main, few, catch_exceptions=False)
    told = json.loads(CliRunner().invoke(placement.main, [*few, "--json"], catch_exceptions=False).stdout)
    assert {"waited_p99_s", "transfers", "moved_gib", "spread_of_machines", "decision_mean_ms"} <= told.keys()
    for kind in ("", "_label", "_node", "_spread_node", "_spread_zone", "_full"):
        assert told[f"directory{kind}_mean_ms"] > 0
    assert [line.rsplit(None, 1)[0] for line in shown.stdout.splitlines()] == [name.replace("_", " ") for name in told]

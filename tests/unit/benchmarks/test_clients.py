"""What the clients of a server took is counted before it is timed: a machine lost or given twice is no result."""

from __future__ import annotations

import pytest

from benchmarks.suite.measures.clients import check_takes


def told(*taken: str, fallbacks: dict[str, int] | None = None) -> dict[str, object]:
    return {"taken": list(taken), "fallbacks": fallbacks or {}}


def test_each_once_is_a_result() -> None:
    check_takes([told("a", "b"), told("c")], 3)


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ([told("a", "b"), told("b")], "2 different ones, of 3"),
        ([told("a"), told("b")], "2 machines were taken"),
        ([told("a", "b", "c", fallbacks={"deadline": 1})], "booted, not taken"),
    ],
)
def test_lost_doubled_or_booted_is_none(ends, message) -> None:
    with pytest.raises(RuntimeError, match=message):
        check_takes(ends, 3)

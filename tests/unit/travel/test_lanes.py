"""Results come in order, few are under way at once, and an error or a stop ends it."""

from __future__ import annotations

from threading import Event, Lock, current_thread, main_thread

import pytest

from vmfork.travel.lanes import in_order


def test_results_come_in_the_order_of_their_items() -> None:
    first_may_end = Event()

    def work(number: int) -> int:
        assert current_thread() is not main_thread()
        if number == 0:
            assert first_may_end.wait(30)
        else:
            first_may_end.set()  # the later ends first
        return number * 2

    assert list(in_order(work, range(20), stop=Event(), lanes=2)) == [n * 2 for n in range(20)]


def test_no_more_are_under_way_than_there_are_lanes_and_one() -> None:
    lock, begun = Lock(), 0

    def work(number: int) -> int:
        nonlocal begun
        with lock:
            begun += 1
        return number

    for taken, _ in enumerate(in_order(work, range(50), stop=Event(), lanes=3)):
        with lock:
            assert begun <= taken + 4


def test_an_error_is_raised_where_its_result_would_be() -> None:
    def work(number: int) -> int:
        if number == 3:
            raise OSError(number)
        return number

    found = []
    with pytest.raises(OSError, match="3"):
        for each in in_order(work, range(50), stop=Event(), lanes=2):
            found.append(each)  # noqa: PERF402 - what came before the error counts
    assert found == [0, 1, 2]


def test_after_a_stop_nothing_more_is_begun() -> None:
    stop, begun = Event(), []

    def work(number: int) -> int:
        begun.append(number)
        return number

    for _ in in_order(work, range(1000), stop=stop, lanes=2):
        stop.set()
    assert len(begun) <= 5

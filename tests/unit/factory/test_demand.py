"""How many machines a pool is to hold, as the rate of takes goes up and down."""

from __future__ import annotations

from vmfork.factory.demand import MEMORY_S, Demand


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def take(demand: Demand, clock: Clock, *, each_s: float, count: int, make_s: float = 1.0) -> list[int]:
    """The sizes after each of `count` takes, one each `each_s` seconds."""
    sizes = []
    for _ in range(count):
        demand.note_take(make_s=make_s)
        sizes.append(demand.size)
        clock.now_s += each_s
    return sizes


def test_without_takes_it_is_the_least() -> None:
    assert Demand(1, 8).size == 1
    assert Demand(0, 8).size == 0


def test_a_burst_is_held_for_with_one_to_spare_up_to_the_most() -> None:
    clock = Clock()
    assert take(Demand(1, 8, clock), clock, each_s=0.0, count=10) == [2, 3, 4, 5, 6, 7, 8, 8, 8, 8]


def test_the_rate_is_followed_by_what_is_taken_while_one_is_made() -> None:
    slow, fast = Clock(), Clock()
    assert take(Demand(1, 9, slow), slow, each_s=2.0, count=20)[-1] == 2
    assert take(Demand(1, 9, fast), fast, each_s=0.4, count=20)[-1] == 4
    # The same rate, of machines that take longer.
    assert take(Demand(1, 9, fast), fast, each_s=0.4, count=20, make_s=2.0)[-1] == 7


def test_a_burst_is_forgotten_after_a_while_and_a_smaller_later_one_is_not() -> None:
    clock = Clock()
    demand = Demand(1, 9, clock)
    take(demand, clock, each_s=0.0, count=5)
    clock.now_s += MEMORY_S / 2
    take(demand, clock, each_s=0.0, count=2)
    assert demand.size == 6
    clock.now_s += MEMORY_S / 2 + 1
    assert demand.size == 3
    clock.now_s += MEMORY_S / 2
    assert demand.size == 1

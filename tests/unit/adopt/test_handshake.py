"""The handshake from the host's side: whatever an agent answers, an item that was not confirmed is named."""

from __future__ import annotations

import time

import pytest

from vmfork.adopt.clock import SKEW_LIMIT_S
from vmfork.adopt.handshake import adopt, check_outcomes
from vmfork.adopt.identity import Identity
from vmfork.errors import AdoptError, DeadlineExceeded, GuestError
from vmfork.wire.message import ClockReading, ItemOutcome

IDENTITY = Identity.fresh("0123456789ab", template="py")
WANTED = IDENTITY.items({"TOKEN": "sesame"})
ITEMS = [item for item, _ in WANTED]


def evidence(item: str, value: bytes) -> bytes:
    """What an agent that did as asked shows for it."""
    return {"entropy": b"256", "env": value.partition(b"=")[0]}.get(item, value)


def confirmed() -> list[ItemOutcome]:
    return [ItemOutcome(item, "ok", evidence(item, value)) for item, value in WANTED]


def refused(outcomes: list[ItemOutcome]) -> tuple[str, str]:
    with pytest.raises(AdoptError) as caught:
        check_outcomes(WANTED, outcomes)
    assert caught.value.item in str(caught.value)
    return caught.value.item, caught.value.reason


def test_every_item_of_the_handshake_is_asked_for() -> None:
    assert ITEMS == ["entropy", "generation", "fork-id", "template", "hostname", "machine-id", "boot-id", "env"]
    check_outcomes(WANTED, confirmed())


@pytest.mark.parametrize("item", ITEMS)
def test_an_item_that_failed_is_named_with_the_guests_reason(item) -> None:
    outcomes = [ItemOutcome(o.item, "denied", b"why") if o.item == item else o for o in confirmed()]
    assert refused(outcomes) == (item, "denied: why")


@pytest.mark.parametrize("item", ITEMS)
def test_an_item_that_was_left_out_is_named(item) -> None:
    assert refused([o for o in confirmed() if o.item != item]) == (item, "the guest did not confirm it")


@pytest.mark.parametrize("item", ITEMS)
def test_evidence_of_something_else_is_a_lie(item) -> None:
    lie = b"many" if item == "entropy" else b"another"
    outcomes = [ItemOutcome(o.item, "ok", lie) if o.item == item else o for o in confirmed()]
    name, reason = refused(outcomes)
    assert name == item
    assert repr(lie) in reason
    assert "sesame" not in reason


def test_an_answer_in_another_order_confirms_nothing() -> None:
    assert refused(confirmed()[::-1])[0] == "entropy"


def test_no_answer_at_all() -> None:
    assert refused([])[0] == "entropy"


class Guest:
    """An agent that confirms all, and whose clock is off by `off_ns`, told after `round_trip_ns`; or that fails."""

    def __init__(self, *, off_ns: int = 0, round_trip_ns: int = 0, fails: Exception | None = None) -> None:
        self.off_ns, self.round_trip_ns, self.fails = off_ns, round_trip_ns, fails

    async def adopt(self, items, *, timeout_s):
        if isinstance(self.fails, DeadlineExceeded):
            raise self.fails
        return tuple(confirmed())

    async def clock(self, set_to, *, host_clock, timeout_s):
        if self.fails is not None:
            raise self.fails
        sent, set_to = host_clock(), set_to or host_clock
        return ClockReading(set_to() + self.off_ns, 1, sent, sent + self.round_trip_ns)


@pytest.mark.parametrize(("off_ms", "round_trip_ms"), [(0, 0), (19, 0), (-19, 0), (0, 19), (10, 19), (19, 19)])
async def test_a_clock_within_the_bound_round_trip_included(off_ms, round_trip_ms) -> None:
    guest = Guest(off_ns=off_ms * 10**6, round_trip_ns=round_trip_ms * 10**6)
    adoption = await adopt(guest, IDENTITY, env={"TOKEN": "sesame"}, timeout_s=5)
    assert adoption.clock_tries == 1
    assert adoption.skew_bound_s <= SKEW_LIMIT_S


@pytest.mark.parametrize(("off_ms", "round_trip_ms"), [(21, 0), (-21, 0), (0, 41), (-10, 31), (3_600_000, 0)])
async def test_a_clock_that_cannot_be_proven_is_no_clock(off_ms, round_trip_ms) -> None:
    guest = Guest(off_ns=off_ms * 10**6, round_trip_ns=round_trip_ms * 10**6)
    begin = time.monotonic()
    with pytest.raises(AdoptError) as caught:
        await adopt(guest, IDENTITY, env={"TOKEN": "sesame"}, timeout_s=0.05)
    assert caught.value.item == "clock"
    assert "20 ms" in caught.value.reason
    assert caught.value.hint
    assert time.monotonic() - begin < 60


async def test_a_clock_that_cannot_be_set_is_named() -> None:
    with pytest.raises(AdoptError) as caught:
        await adopt(Guest(fails=GuestError("EPERM")), IDENTITY, env={"TOKEN": "sesame"}, timeout_s=5)
    assert (caught.value.item, caught.value.reason) == ("clock", "EPERM")


async def test_an_agent_that_does_not_answer_is_named() -> None:
    with pytest.raises(AdoptError) as caught:
        await adopt(Guest(fails=DeadlineExceeded("adopting", 0.5)), IDENTITY, timeout_s=0.5)
    assert (caught.value.item, caught.value.reason) == ("agent", "it did not answer within 0.5 s")

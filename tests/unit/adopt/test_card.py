"""A machine's card: its addresses are its own, and what the guest does not confirm ends it."""

from __future__ import annotations

import ipaddress

import pytest

from vmfork.adopt.card import GATEWAY, NAME_SERVER, NETWORK, Card, set_up_card
from vmfork.errors import AdoptError, DeadlineExceeded, GuestError, GuestFileError
from vmfork.wire.message import CardReading


class Guest:
    """Shows what it was told, or `shown`, or fails with `error`; files it was given are in `files`."""

    def __init__(self, shown: CardReading | None = None, error: Exception | None = None) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.files: dict[str, bytes] = {}
        self._shown = shown
        self._error = error

    async def set_card(self, mac: str, *where: str, timeout_s: float) -> CardReading:
        del timeout_s
        self.asked.append((mac, *where))
        if self._error is not None:
            raise self._error
        return self._shown or CardReading("eth0", mac, where[0] if where else "")

    async def write_file(self, path: str, data: bytes, *, timeout_s: float) -> None:
        del timeout_s
        self.files[path] = data


@pytest.mark.parametrize("choice", ["none", "restricted", "open", "passt"])
def test_each_card_has_an_address_of_its_own_that_no_maker_has(choice) -> None:
    cards = [Card.draw(choice) for _ in range(500)]
    assert len({card.mac for card in cards}) == 500
    # Nobody was assigned it (value 2), and it is one card's (value 1).
    assert {int(card.mac[:2], 16) & 3 for card in cards} == {2}
    addresses = {card.address for card in cards}
    if choice == "none":
        assert addresses == {""}
    else:
        found = {ipaddress.IPv4Address(each) for each in addresses}
        assert all(each in NETWORK for each in found)
        assert not found & {ipaddress.IPv4Address(each) for each in (GATEWAY, NAME_SERVER, "10.0.2.15")}
        assert len(found) > 100


def test_what_a_state_holds_is_there_in_every_copy_and_lets_nothing_through_where_nothing_is_asked() -> None:
    assert Card.draw("none").backend == "none"
    assert not Card.draw("none").holds_user_network
    for choice in ("restricted", "open"):
        parent = Card.draw(choice)
        assert parent.backend == choice
        assert parent.holds_user_network
        copy = Card.draw("none", holds_user_network=parent.holds_user_network)
        assert (copy.backend, copy.address, copy.holds_user_network) == ("restricted", "", True)


def test_passt_is_in_no_state() -> None:
    assert (Card.draw("passt").backend, Card.draw("passt").holds_user_network) == ("passt", False)


async def test_the_guest_is_told_where_it_is() -> None:
    for choice in ("none", "restricted", "open"):
        guest, card = Guest(), Card.draw(choice)
        await set_up_card(guest, card, timeout_s=1)
        mac = card.mac.replace(":", "")
        assert guest.asked == [(mac,) if choice == "none" else (mac, card.address, "24", GATEWAY)]
        assert guest.files == ({"/etc/resolv.conf": b"nameserver 10.0.2.3\n"} if choice == "open" else {})


@pytest.mark.parametrize(
    "guest",
    [
        Guest(CardReading("eth0", "020000000001", "10.0.2.99")),
        Guest(CardReading("eth0", "", "")),
        Guest(error=DeadlineExceeded("setting up the guest's network card", 1.0)),
        Guest(error=GuestError("the guest has no network card")),
        Guest(error=GuestFileError("/etc/resolv.conf", "no-space", "no room")),
    ],
)
async def test_what_is_not_confirmed_is_no_machine(guest) -> None:
    with pytest.raises(AdoptError, match="card"):
        await set_up_card(guest, Card.draw("open"), timeout_s=1)

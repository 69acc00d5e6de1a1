"""Addresses of cards are one machine's as long as its folder is there."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from vmfork.adopt import card as card_module
from vmfork.adopt.card import Card
from vmfork.errors import StoreBusy
from vmfork.host.lock import locked_folder
from vmfork.machine import addresses
from vmfork.machine.addresses import Held, hold_addresses, list_held
from vmfork.machine.folder import VMFolder, new_vm_id

EVERY = 12


@pytest.fixture
def vms(tmp_path):
    return tmp_path / "vms"


@pytest.fixture
def machines(vms):
    """Makes folders of machines, which are gone in the end."""
    with ExitStack() as stack:

        def make() -> VMFolder:
            folder = VMFolder.create(vms, new_vm_id())
            stack.callback(folder.close)
            return folder

        yield make


async def test_no_two_have_the_same_though_all_drew_alike_and_asked_at_once(machines) -> None:
    drawn = Card.draw("open")
    cards = await asyncio.gather(*(hold_addresses(machines(), drawn) for _ in range(30)))
    assert len({card.mac for card in cards}) == len({card.address for card in cards}) == 30
    assert {(card.choice, card.holds_user_network) for card in cards} == {("open", True)}
    assert drawn in cards


async def test_as_many_have_one_as_there_are_and_what_one_had_is_free_when_its_folder_is_gone(
    machines, monkeypatch
) -> None:
    assert len(card_module._ADDRESSES) == 239
    monkeypatch.setattr(card_module, "_ADDRESSES", card_module._ADDRESSES[:EVERY])
    folders = [machines() for _ in range(EVERY)]
    cards = [await hold_addresses(folder, Card.draw("restricted")) for folder in folders]
    assert len({card.address for card in cards}) == EVERY
    folders[10].close()
    assert (await hold_addresses(machines(), Card.draw("open"))).address == cards[10].address
    # One more has one that another has, and an Ethernet address of its own all the same.
    more = await hold_addresses(machines(), cards[7])
    assert more.address == cards[7].address
    assert more.mac not in {card.mac for card in cards}


async def test_a_machine_that_comes_back_has_others_and_gives_back_what_it_had(machines, vms) -> None:
    folder = machines()
    before = await hold_addresses(folder, Card.draw("open"))
    after = await hold_addresses(folder, before)
    assert (after.mac, after.address) != (before.mac, before.address)
    assert list_held(vms) == [Held(mac=after.mac, address=after.address)]


async def test_cards_that_are_down_have_an_ethernet_address_each(machines, vms) -> None:
    drawn = Card.draw("none")
    cards = [await hold_addresses(machines(), drawn) for _ in range(3)]
    assert [card.address for card in cards] == [""] * 3
    assert {each.mac for each in list_held(vms)} == {card.mac for card in cards}
    assert len(cards) == len({card.mac for card in cards})


async def test_who_waits_for_the_lock_is_told_and_holds_nothing(machines, vms, monkeypatch) -> None:
    monkeypatch.setattr(addresses, "_LOCK_WAIT_S", 0.0)
    folder = machines()
    async with locked_folder(vms, wait_s=0):
        with pytest.raises(StoreBusy):
            await hold_addresses(folder, Card.draw("open"))
    assert list_held(vms) == []

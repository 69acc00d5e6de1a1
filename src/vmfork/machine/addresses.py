"""Addresses of network cards: of the machines of an instance that are there at one time, no two have the same.

A machine's are noted in its folder, and are its own until that is gone, whoever owns the machine by then. Whoever takes
some holds the lock of VMS meanwhile, as for room (`machine/room.py`).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from vmfork.host.folders import link_atomically, read_link
from vmfork.host.lock import locked_folder
from vmfork.machine.folder import is_vm_id

if TYPE_CHECKING:
    from pathlib import Path

    from vmfork.adopt.card import Card
    from vmfork.machine.folder import VMFolder

# A link that leads nowhere: each start of a machine reads those of all others, ten times as fast as files.
_HELD = "card"
# Whoever holds the lock reads a few links.
_LOCK_WAIT_S = 10.0


class Held(NamedTuple):
    """What a machine's card has: an Ethernet address, and another where it is up."""

    mac: str
    address: str


async def hold_addresses(folder: VMFolder, card: Card) -> Card:
    """The card, with addresses that are this machine's alone until its folder is gone: others, where some were taken.

    What it held before is given back, and not taken again. Raises `StoreBusy` when the lock is not free within 10 s.
    """
    vms = folder.path.parent
    async with locked_folder(vms, wait_s=_LOCK_WAIT_S):
        held = list_held(vms)
        card = card.apart_from({each.mac for each in held}, {each.address for each in held})
        link_atomically(folder.path / _HELD, f"{card.mac},{card.address}")
    return card


def list_held(vms: Path) -> list[Held]:
    """What all machines hold."""
    links = (read_link(vms / name / _HELD) for name in os.listdir(vms) if is_vm_id(name))
    return [Held(mac, address) for mac, _, address in (link.partition(",") for link in links if link is not None)]

"""How a machine's card leads out by passt, and what is said when it does not any more."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from vmfork.adopt.card import GATEWAY, NAME_SERVER, NETWORK, Card
from vmfork.errors import VMForkError
from vmfork.host.passt import Outlet
from vmfork.hypervisor.base import Link
from vmfork.journal import about

if TYPE_CHECKING:
    from vmfork.host.passt import Passt
    from vmfork.machine.facts import MachineFacts
    from vmfork.machine.running import Running

_log = logging.getLogger("vmfork")

# What a passt is counted with. Measured: 20 MiB of its own, and what the kernel holds for its sockets.
PASST_MIB = 64
# A machine that ends takes its passt along, which may be seen first.
_END_GRACE_S = 5.0
_at_work: set[asyncio.Task[None]] = set()


def make_link(card: Card, passt: Passt | None) -> Link:
    """The card as the hypervisor is asked for it; out by `passt` where it is given."""
    outlet = None
    if passt is not None:
        outlet = Outlet(
            program=passt.path,
            address=card.address,
            prefix=NETWORK.prefixlen,
            gateway=GATEWAY,
            name_server=NAME_SERVER,
        )
    return Link(mac=card.mac, backend=card.backend, outlet=outlet)


def has_no_carrier(facts: MachineFacts) -> bool:
    """Whether the device state of a copy that was made by now may have a card without a carrier."""
    if facts.card is None:
        return False
    if facts.card.had_no_carrier and facts.card.backend == "none":
        return True
    return facts.outlet is not None and not facts.outlet.is_alive()


async def wire(running: Running, *, timeout_s: float) -> None:
    """What the machine's card leads to is there, and it has a carrier. The guest runs.

    Raises `HostError` when passt ended as it started, and `DeadlineExceeded`.
    """
    card = running.facts.card
    await running.machine.wait_outlet(timeout_s=timeout_s)
    if card is not None and card.had_no_carrier and card.backend != "none":
        await running.machine.set_carrier(up=True)


def watch_outlet(running: Running) -> None:
    """Should the passt of the machine end before it, the guest's card has no carrier, and a warning is logged."""

    def begin() -> None:
        task = asyncio.get_running_loop().create_task(_tell(running))
        _at_work.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(_at_work.discard)

    running.machine.on_outlet_lost(begin)


async def _tell(running: Running) -> None:
    machine, what = running.machine, "it has no carrier"
    try:
        await machine.set_carrier(up=False)
    except VMForkError as error:
        with suppress(TimeoutError):
            await asyncio.wait_for(machine.wait(), _END_GRACE_S)
            return
        what = f"its carrier could not be taken down ({error.message})"
    _log.warning(
        "the passt of VM %s has ended: its card leads nowhere, and %s",
        running.id,
        what,
        extra=about("machine.card-lost", vm_id=running.id, template=running.template),
    )

"""A machine's network card: where it leads, and its addresses, fresh in each machine.

| choice | the card | behind it |
| --- | --- | --- |
| none | is down and has no address | nothing |
| restricted | is up | QEMU's user network, which answers for a gateway and lets nothing through |
| open | is up | QEMU's user network: what a process of the host reaches, and as 10.0.2.2 the host's own loopback |
| passt | is up | passt, a process of its own: what a process of the host reaches, without the host's loopback |
"""

from __future__ import annotations

import ipaddress
import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from vmfork.config.values import CardChoice  # noqa: TC001 - a record's types are looked up when it is read
from vmfork.errors import AdoptError, DeadlineExceeded, GuestError, GuestFileError

if TYPE_CHECKING:
    from collections.abc import Collection

    from vmfork.agent.client import AgentClient

# Those of QEMU's user network, which has one of its own for each machine (system/qemu-options: -netdev user).
NETWORK = ipaddress.IPv4Network("10.0.2.0/24")
GATEWAY, NAME_SERVER = "10.0.2.2", "10.0.2.3"
# From 10.0.2.16 on: QEMU gives 10.0.2.15 to who asks for one. The last is for all.
_ADDRESSES = [str(NETWORK[number]) for number in range(16, 255)]
# An Ethernet address that nobody assigned (IEEE 802: the bit of value 2), and of one card.
_OWN_MAC = 0x02


def _draw_mac() -> str:
    return ":".join(f"{byte:02x}" for byte in (_OWN_MAC, *secrets.token_bytes(5)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A machine's card. `mac` is `02:` and five random bytes; no other machine has it. `address` is empty while down.

    There are 239 addresses. Each machine has a network to itself, so that nothing breaks where two have the same.
    `holds_user_network`: QEMU's user network is in the machine's device state, and in that of every copy of it.
    `had_no_carrier`: in the state that it was made from its card may have been without one.
    """

    choice: CardChoice
    mac: str
    address: str = ""
    holds_user_network: bool = False
    had_no_carrier: bool = False

    @classmethod
    def draw(cls, choice: CardChoice, *, holds_user_network: bool = False, had_no_carrier: bool = False) -> Self:
        """A card that leads there, with addresses of its own. Of a copy it is said what its device state holds."""
        return cls(
            choice=choice,
            mac=_draw_mac(),
            address="" if choice == "none" else secrets.choice(_ADDRESSES),
            holds_user_network=holds_user_network or choice in ("restricted", "open"),
            had_no_carrier=had_no_carrier,
        )

    def apart_from(self, macs: Collection[str], addresses: Collection[str]) -> Card:
        """The card with addresses that are not among these. Where all 239 are, it keeps the one that it has."""
        mac, address = self.mac, self.address
        while mac in macs:
            mac = _draw_mac()
        if address and address in addresses and (free := [each for each in _ADDRESSES if each not in addresses]):
            address = secrets.choice(free)
        return replace(self, mac=mac, address=address)

    @property
    def backend(self) -> CardChoice:
        """What QEMU is started with. What its state holds must be there, if only to let nothing through."""
        return "restricted" if self.choice == "none" and self.holds_user_network else self.choice


async def set_up_card(agent: AgentClient, card: Card, *, timeout_s: float) -> None:
    """The guest's card has its addresses, read back and compared, and the network was told of them.

    Raises `AdoptError` when the guest did not confirm that in time; the machine must then be destroyed.
    """
    where = (card.address, str(NETWORK.prefixlen), GATEWAY) if card.address else ()
    mac = card.mac.replace(":", "")
    try:
        found = await agent.set_card(mac, *where, timeout_s=timeout_s)
        if card.choice in ("open", "passt"):
            await agent.write_file("/etc/resolv.conf", f"nameserver {NAME_SERVER}\n".encode(), timeout_s=timeout_s)
    except DeadlineExceeded as error:
        raise AdoptError("card", f"the guest did not answer within {timeout_s:g} s") from error
    except (GuestError, GuestFileError) as error:
        raise AdoptError("card", error.message, hint=error.hint) from error
    if (found.mac, found.address) != (mac, card.address):
        raise AdoptError(
            "card", f"the guest shows {found.mac!r} and {found.address!r}, not {mac!r} and {card.address!r}"
        )

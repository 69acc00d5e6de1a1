"""Whether a machine's devices are what is asked for: its network card, its disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from vmfork.config.values import CardChoice
from vmfork.errors import ConfigError

if TYPE_CHECKING:
    from vmfork.adopt.card import Card
    from vmfork.hypervisor.base import Hardware
    from vmfork.network.policy import NetworkPolicy


def check_card(card: CardChoice, network: NetworkPolicy) -> None:
    """Raises `ConfigError` for an unknown choice, and for a card by which programs go past the policy."""
    if card not in get_args(CardChoice):
        raise ConfigError("card", card, f"{card!r} is not known", hint="use none, restricted, open or passt")
    if card in ("open", "passt") and network != "none":
        raise ConfigError(
            "card",
            card,
            "programs go past a policy by a card that leads out",
            hint=f"leave out one of them: network= for what is named, card={card!r} for all that this host reaches",
        )


def check_copy(card: CardChoice, parent: Card | None, *, whose: str) -> None:
    """Raises `ConfigError` when a copy's card is to lead out by passt, and QEMU's user network is in its state."""
    if card == "passt" and parent is not None and parent.holds_user_network:
        raise ConfigError(
            "card",
            card,
            f"{whose} has QEMU's user network in its device state: its forks can have no other",
            hint="fork a machine whose card leads nowhere, or out by passt itself",
        )


def check_has_card(card: CardChoice, hardware: Hardware, *, whose: str) -> None:
    """Raises `ConfigError` when a card is to lead somewhere, and machines of this hardware have none."""
    if card != "none" and not hardware.nic:
        hint = "build the template with one: nic=True, or vmfork template build --nic"
        raise ConfigError("card", card, f"{whose} has no network card", hint=hint)

"""Whether a machine's devices are what is asked for: its network card, its disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from vmfork.config.values import CardChoice
from vmfork.errors import ConfigError
from vmfork.hypervisor.qemu import board_of
from vmfork.units import format_mib

if TYPE_CHECKING:
    from collections.abc import Collection

    from vmfork.adopt.card import Card
    from vmfork.hypervisor.base import Hardware
    from vmfork.network.policy import NetworkPolicy

# What an agent says of itself that mounts a disk which came after its guest had booted.
TAKES_DISK = "disk"


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


def plan_disk(wanted_mib: int | None, hardware: Hardware, capabilities: Collection[str], *, whose: str) -> int:
    """MiB of the disk that a machine made from one of `hardware` is given: 0 where it has what is asked for already.

    `capabilities` are those of its agent. Raises `ConfigError` when it cannot have the disk that is asked for.
    """
    have_mib = hardware.scratch_mib
    if wanted_mib is None or wanted_mib == have_mib:
        return 0
    build = f"build a template with one: vmfork template build NAME --disk {wanted_mib}"
    if have_mib:
        asked = f"not of {format_mib(wanted_mib)}" if wanted_mib else "not none"
        reason = f"{whose} has a disk of {format_mib(have_mib)}, {asked}, and its forks have the same"
        hint = f"leave the size out; or {build}" if wanted_mib else "leave it out, or take a template without a disk"
        raise ConfigError("disk", wanted_mib, reason, hint=hint)
    if not board_of(hardware.machine).takes_disk:
        reason = f"{whose} is a {hardware.machine}, which takes no disk once it has booted"
        raise ConfigError("disk", wanted_mib, reason, hint=f"{build}; or with --machine q35")
    if TAKES_DISK not in capabilities:
        reason = f"the agent of {whose} is older, and takes no disk"
        hint = "build the image and the template again with this vmfork"
        raise ConfigError("disk", wanted_mib, reason, hint=hint)
    return wanted_mib


def check_has_card(card: CardChoice, hardware: Hardware, *, whose: str) -> None:
    """Raises `ConfigError` when a card is to lead somewhere, and machines of this hardware have none."""
    if card != "none" and not hardware.nic:
        hint = "build the template with one: nic=True, or vmfork template build --nic"
        raise ConfigError("card", card, f"{whose} has no network card", hint=hint)

"""The machines that commands are about: those that run, and those that ended not long ago."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from vmfork.cli.complete import shared_vms
from vmfork.cli.loop import run_async
from vmfork.config import find_places
from vmfork.errors import VMNotFound
from vmfork.machine.folder import (
    forget_ended,
    has_broker,
    is_paused,
    list_ended,
    list_records,
    sweep_ended,
    sweep_vms,
)
from vmfork.machine.naming import NEITHER, choose, find_ending
from vmfork.template import checkpoints

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vmfork.machine.ended import End
    from vmfork.machine.folder import VMRecord

id_argument = click.argument("vm_id", metavar="ID", shell_complete=shared_vms)


def find(text: str) -> tuple[VMRecord, End | None]:
    """The record of the machine that `text` names, and how it ended if it has. A living one is found first.

    One that ends at this moment is waited for. Raises `VMNotFound`, and `ConfigError` when several ids begin so.
    """
    vms = _sweep()
    with suppress(VMNotFound):
        return choose(list_records(vms), text), None
    with suppress(VMNotFound):
        return _find_ended(vms, text)
    with suppress(VMNotFound):
        run_async(sweep_ended(vms / find_ending(vms, text).id))
    return _find_ended(vms, text)


def _find_ended(vms: Path, text: str) -> tuple[VMRecord, End]:
    ended = list_ended(vms)[::-1]
    record = choose([record for record, _ in ended], text, missing=NEITHER)
    return next(each for each in ended if each[0] is record)


def list_machines(*, with_ended: bool) -> Sequence[tuple[VMRecord, End | None]]:
    """Those that ended, where they are asked for, in the order of their ends; then those that run, oldest first."""
    vms = _sweep()
    living = [(record, None) for record in list_records(vms)]
    return [*list_ended(vms), *living] if with_ended else living


def _sweep() -> Path:
    """The folder of machines, where one that ended just now is among those that have, and none for too long."""
    vms = find_places().vms
    sweep_vms(vms)
    forget_ended(vms)
    checkpoints.sweep(find_places())
    return vms


def describe(record: VMRecord, end: End | None) -> dict[str, Any]:
    """What `--json` tells."""
    told: dict[str, Any] = {
        "id": record.id,
        "name": record.name,
        "labels": dict(record.labels),
        "template": record.template,
        "parent": record.parent,
        "ancestors": record.facts.descent.vms,
        "image": record.image,
        "state": "ended" if end is not None else _state(record),
        "paused": end is None and is_paused(find_places().vms / record.id),
        "cpus": record.cpus,
        "memory_mib": record.memory_mib,
        "accel": record.accel,
        "isolation": record.isolation.level,
        "card": _tell_card(record, lives=end is None),
        "created_at": record.created_at,
    }
    if end is None:
        return told | {"pid": record.pid, "owner_pid": record.owner_pid}
    ended_at = datetime.fromtimestamp(end.at, UTC).isoformat(timespec="milliseconds")
    return told | {"ended_at": ended_at, "reason": end.reason}


def _tell_card(record: VMRecord, *, lives: bool) -> dict[str, str | bool] | None:
    card, outlet = record.facts.card, record.facts.outlet
    if card is None:
        return None
    lost = {} if outlet is None or not lives else {"lost": not outlet.is_alive()}
    return {"choice": card.choice, "mac": card.mac, "address": card.address, **lost}


def tell_paused(vm_id: str) -> None:
    """Whoever is about to wait for a guest that stands still was told on standard error."""
    if is_paused(find_places().vms / vm_id):
        click.echo(f"note: machine {vm_id} is paused, and does nothing until: vmfork resume {vm_id}", err=True)


def _state(record: VMRecord) -> str:
    """`shared`: a broker owns it, and clients may connect. `owned`: it has one owner. `waiting`: it has none."""
    if has_broker(find_places().vms / record.id):
        return "shared"
    return "owned" if record.owner_pid else "waiting"

"""`vmfork show`: what is known of one machine."""

from __future__ import annotations

import shlex
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from vmfork.cli.found import describe, find, id_argument
from vmfork.cli.options import json_option
from vmfork.cli.show import printable, show_json
from vmfork.config import find_places
from vmfork.errors import ConfigError
from vmfork.machine.background import read_status
from vmfork.machine.folder import folder_of, read_brokered, read_handle
from vmfork.machine.handle import VMHandle
from vmfork.machine.kept import list_programs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmfork.machine.folder import VMRecord


@click.command("show")
@id_argument
@json_option
def command(vm_id: str, as_json: bool) -> None:
    """Show what is known of machine ID, which runs or ended not long ago."""
    record, end = find(vm_id)
    told = describe(record, end)
    if end is None:
        told["ends_at"] = _find_deadline(record)
    told["programs"] = _list_programs(record)
    if as_json:
        show_json(told)
        return
    for name, value in told.items():
        if name == "programs":
            _show_programs(value)
            continue
        if value is None:
            continue
        parts = [f"{key}={text}" for key, text in value.items()] if isinstance(value, dict) else value
        shown = " ".join(parts) if isinstance(parts, (list, tuple)) else parts
        click.echo(f"{name:12} {shown}".rstrip())


def _find_deadline(record: VMRecord) -> str | None:
    """When its time to live is over, where it has one. Of a machine with one owner that owner alone knows it."""
    folder = find_places().vms / record.id
    data = read_brokered(folder) or read_handle(folder)
    ends_at = 0.0
    with suppress(ConfigError):  # of another version of vmfork: the rest is told all the same
        ends_at = 0.0 if data is None else VMHandle.from_json(data).ends_at
    return datetime.fromtimestamp(ends_at, UTC).isoformat(timespec="milliseconds") if ends_at else None


def _list_programs(record: VMRecord) -> list[dict[str, Any]]:
    """Its programs in the background; `exit_code` is `None` for one that runs, or ran when the machine ended."""
    folder = folder_of(find_places().vms, record.id)
    found = [(program, read_status(folder, program)) for program in list_programs(folder)]
    return [
        {"pid": program.pid, "argv": program.argv, "exit_code": None if status is None else status.exit_code}
        for program, status in found
    ]


def _show_programs(programs: Sequence[Mapping[str, Any]]) -> None:
    for each in programs:
        state = "running" if each["exit_code"] is None else f"exit status {each['exit_code']}"
        click.echo(printable(f"program      {each['pid']} ({state}) {shlex.join(each['argv'])}"))

"""`vmfork checkpoint`: what a machine can go back to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vmfork.api.vm import VM
from vmfork.cli.complete import checkpoint_names
from vmfork.cli.found import find, id_argument
from vmfork.cli.loop import run_async
from vmfork.cli.options import json_option
from vmfork.cli.show import show_json, show_table
from vmfork.config import find_places
from vmfork.errors import ConfigError
from vmfork.template.point import find_point, list_points
from vmfork.units import format_bytes

if TYPE_CHECKING:
    from vmfork.template.point import KeptPoint


@click.command("checkpoint")
@id_argument
@click.argument("name", default="", metavar="[NAME]", shell_complete=checkpoint_names)
@click.option("--list", "is_list", is_flag=True, help="List those of ID; none is made.")
@click.option("--remove", "is_removal", is_flag=True, help="Remove NAME of ID; none is made.")
@click.option("--hooks", is_flag=True, help="Run hooks: of before a freeze now, of after a fork at each rollback.")
@json_option
def command(vm_id: str, name: str, is_list: bool, is_removal: bool, hooks: bool, as_json: bool) -> None:
    """Keep machine ID, which runs on, as it is now, and print the name: NAME, or the next number.

    `vmfork rollback` brings it back, also when it has ended by itself. It holds all memory of ID until it is removed,
    or ID is stopped.
    """
    if is_list or is_removal:
        if is_list and (is_removal or name):
            raise ConfigError("list", name, "all are listed", hint="leave NAME and --remove out")
        _list(vm_id, as_json=as_json) if is_list else _remove(vm_id, name, as_json=as_json)
        return

    async def work() -> dict[str, Any]:
        async with VM.connect(vm_id) as vm:
            made = await vm.checkpoint(lasting=True, name=name, hooks=hooks)
            return {"id": vm.id, "name": made.name, "pause_s": made.pause_s, "memory_bytes": made.memory_bytes}

    told = run_async(work())
    if as_json:
        show_json(told)
    else:
        click.echo(told["name"])


def _list(vm_id: str, *, as_json: bool) -> None:
    record, _ = find(vm_id)
    told = [_tell(point) for point in list_points(record.id, record.facts, places=find_places())]
    if as_json:
        show_json({"id": record.id, "checkpoints": told})
        return
    rows = [(each["name"], each["created_at"][:19], format_bytes(each["memory_bytes"])) for each in told]
    show_table(("NAME", "CREATED", "MEMORY"), rows)


def _remove(vm_id: str, name: str, *, as_json: bool) -> None:
    if not name:
        raise ConfigError("name", name, "which one is to be removed?", hint="vmfork checkpoint ID --list names them")
    record, _ = find(vm_id)
    run_async(find_point(record.id, record.facts, name, places=find_places()).remove())
    if as_json:
        show_json({"id": record.id, "removed": name})


def _tell(point: KeptPoint) -> dict[str, Any]:
    return {"name": point.name, "created_at": point.manifest.created_at, "memory_bytes": point.memory_bytes}

"""`vmfork rollback`: a machine goes back to what it was."""

from __future__ import annotations

import click

from vmfork.api.vm import VM
from vmfork.cli.carry import read_baggage
from vmfork.cli.complete import checkpoint_names, returning_vms
from vmfork.cli.found import find
from vmfork.cli.loop import run_async
from vmfork.cli.options import env_option, files_option, json_option, parse_variables
from vmfork.cli.show import show_json


@click.command("rollback")
@click.argument("vm_id", metavar="ID", shell_complete=returning_vms)
@click.argument("checkpoint", default="", metavar="[CHECKPOINT]", shell_complete=checkpoint_names)
@env_option
@files_option
@json_option
def command(vm_id: str, checkpoint: str, variables: tuple[str, ...], files: tuple[str, ...], as_json: bool) -> None:
    """Bring machine ID back to CHECKPOINT, or its last one, under the same id, and print that.

    It runs, as unique and current as a fresh fork, whether it ran, was paused, or had ended by itself. Its other
    clients lose what they had open; ports and policies that they hold end, and can be had anew.
    """
    baggage, env = read_baggage(files), parse_variables(variables)
    record, end = find(vm_id)

    async def work() -> None:
        if end is None:
            async with VM.connect(record.id) as vm:
                await vm.rollback(checkpoint, env=env, files=baggage.files)
                await baggage.put_folders(vm)
        else:
            async with VM.revive(record.id, checkpoint, env=env, files=baggage.files) as vm:
                await baggage.put_folders(vm)

    run_async(work())
    if as_json:
        show_json({"id": record.id, "name": record.name, "had_ended": end is not None})
    else:
        click.echo(record.id)

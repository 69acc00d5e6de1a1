"""`vmfork watch`: what happens to files in a machine that `start` made."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from vmfork.api.vm import VM
from vmfork.cli.found import id_argument
from vmfork.cli.loop import run_async
from vmfork.cli.options import json_option
from vmfork.cli.show import json_document, printable

if TYPE_CHECKING:
    from vmfork.wire.event import FileEvent


@click.command("watch")
@click.option("-r", "--recursive", is_flag=True, help="Watch all folders below it too.")
@json_option
@id_argument
@click.argument("path", metavar="PATH")
def command(recursive: bool, as_json: bool, vm_id: str, path: str) -> None:
    """Print what happens to the file or folder PATH of machine ID, as it happens, until it is gone.

    With --json each event is a line of its own.
    """

    async def work() -> None:
        async with VM.connect(vm_id) as vm, vm.watch(path, recursive=recursive) as watch:
            while (event := await watch.next()) is not None:
                click.echo(_describe(event, as_json=as_json))
            json_document.is_owed = False

    run_async(work())


def _describe(event: FileEvent, *, as_json: bool) -> str:
    if as_json:
        return json.dumps(asdict(event))
    return f"{event.kind} {printable(event.path)}{'/' if event.is_dir else ''}"

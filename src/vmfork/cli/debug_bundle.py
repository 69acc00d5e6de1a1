"""`vmfork debug-bundle`: what a bug report needs, in one file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmfork.cli.bundle import collect
from vmfork.cli.complete import living_vms
from vmfork.cli.loop import run_async
from vmfork.cli.options import get_settings, json_option
from vmfork.cli.show import show_json
from vmfork.config import find_places
from vmfork.errors import ConfigError, VMNotFound
from vmfork.host.folders import write_whole
from vmfork.machine.folder import is_vm_id, list_ended
from vmfork.machine.naming import NEITHER, choose, find_vm
from vmfork.units import format_bytes

if TYPE_CHECKING:
    from vmfork.config.loader import Settings


@click.command("debug-bundle")
@click.argument("vm_id", metavar="ID", shell_complete=living_vms)
@click.option("-o", "--output", metavar="FILE", help="Write this file. Default: vmfork-ID-TIME.tar.gz in this folder.")
@json_option
def command(vm_id: str, output: str | None, as_json: bool) -> None:
    """Collect what a bug report about machine ID needs in one tar.gz, without guest memory or secrets.

    Its record, the ends of its console and of QEMU's log, versions, settings, and what doctor finds. The machine may
    have ended, or its folder be damaged: what is missing is told.
    """
    vm_id = _find_id(vm_id)
    bundle = run_async(collect(vm_id, _find_settings(), find_places()))
    path = Path(output or f"vmfork-{vm_id}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.tar.gz").absolute()
    data = bundle.write()
    write_whole(path, data)
    if as_json:
        show_json({"path": str(path), "bytes": len(data), "members": [*bundle.members], "missing": bundle.missing})
        return
    click.echo(f"{path} ({format_bytes(len(data))})")
    for name, why in bundle.missing.items():
        click.echo(f"note: {name} is missing: {why}", err=True)


def _find_id(text: str) -> str:
    """The id of the machine that `text` names. A whole id need not be that of a machine whose record can be read."""
    if is_vm_id(text):
        return text
    vms = find_places().vms
    try:
        return find_vm(vms, text).id
    except VMNotFound:
        ended = [record for record, _ in reversed(list_ended(vms))]
        return choose(ended, text, missing=NEITHER).id


def _find_settings() -> Settings | None:
    try:
        return get_settings()
    except ConfigError:
        return None

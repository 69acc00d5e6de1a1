"""`vmfork wait`: the end of a machine."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from vmfork.cli.found import find, id_argument
from vmfork.cli.loop import run_async
from vmfork.cli.options import json_option
from vmfork.cli.show import show_json
from vmfork.config import find_places
from vmfork.errors import VMNotFound
from vmfork.host.process import wait_ended
from vmfork.machine.ended import End
from vmfork.machine.folder import sweep_ended

if TYPE_CHECKING:
    from vmfork.machine.folder import VMRecord


@click.command("wait")
@id_argument
@json_option
def command(vm_id: str, as_json: bool) -> None:
    """Wait until machine ID has ended, and print why. Of one that ended not long ago that is printed at once.

    To wait is not to use it: its idle time runs on.
    """
    record, end = find(vm_id)
    if end is None:
        run_async(_wait(record))
        end = _find_end(record)
    if as_json:
        show_json({"id": record.id, "reason": end.reason, "ended_at": end.at})
    else:
        click.echo(end.reason)


def _find_end(record: VMRecord) -> End:
    """Of a machine that had one owner, as most have, nothing is kept."""
    try:
        _, end = find(record.id)
    except VMNotFound:
        end = None
    return end or End("its owner ended it, or has ended", time.time())


async def _wait(record: VMRecord) -> None:
    """The machine has ended, and its folder may be swept."""
    await wait_ended(record.process)
    await sweep_ended(find_places().vms / record.id)

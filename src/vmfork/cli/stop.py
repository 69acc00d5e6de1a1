"""`vmfork stop`: the end of machines that `start` made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmfork.cli.each import ids_argument, on_each
from vmfork.cli.options import json_option
from vmfork.units import parse_duration_s

if TYPE_CHECKING:
    from collections.abc import Sequence

_GRACE_S = 10.0


@click.command("stop")
@ids_argument
@click.option("--grace", metavar="TIME", help="Its guest has this long to power off; 0 is none. Default: 10s.")
@json_option
def command(vm_ids: Sequence[str], grace: str | None, as_json: bool) -> None:
    """End each machine ID that `start` made. It is gone when this command ends."""
    grace_s = _GRACE_S if grace is None else parse_duration_s(grace, field="grace")
    on_each(vm_ids, lambda vm: vm.stop(grace_s=grace_s), "stopped", as_json=as_json)

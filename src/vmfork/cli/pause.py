"""`vmfork pause`: machines that `start` made stand still."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmfork.api.vm import VM
from vmfork.cli.each import ids_argument, on_each
from vmfork.cli.options import json_option

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.command("pause")
@ids_argument
@json_option
def command(vm_ids: Sequence[str], as_json: bool) -> None:
    """Let each machine ID stand still. Whoever asks something of it waits until `resume`."""
    on_each(vm_ids, lambda vm: vm.pause(), "paused", as_json=as_json, entered=VM.connect)

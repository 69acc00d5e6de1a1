"""`vmfork resume`: machines that `start` made run on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmfork.api.vm import VM
from vmfork.cli.each import ids_argument, on_each
from vmfork.cli.options import json_option

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.command("resume")
@ids_argument
@json_option
def command(vm_ids: Sequence[str], as_json: bool) -> None:
    """Let each machine ID run on, with the host's clock."""
    on_each(vm_ids, lambda vm: vm.resume(), "resumed", as_json=as_json, entered=VM.connect)

"""`vmfork diff`: what differs between two machines, or a machine and a template."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from vmfork.api.template import Template
from vmfork.api.vm import VM
from vmfork.cli.complete import shared_vms
from vmfork.cli.loop import run_async
from vmfork.cli.options import get_settings, json_option
from vmfork.cli.show import printable, show_json
from vmfork.errors import TemplateNotFound, VMNotFound

if TYPE_CHECKING:
    from vmfork.difference.difference import Difference

_PAGES_A_MIB = 256
_SIGNS = {"ours": "<", "theirs": ">", "both": "~"}


@click.command("diff")
@click.argument("ours", metavar="A", shell_complete=shared_vms)
@click.argument("theirs", metavar="B", shell_complete=shared_vms)
@json_option
def command(ours: str, theirs: str, as_json: bool) -> None:
    """Show what differs between A and B: files, processes, memory.

    Each is a machine that was started, by its name or id, or the name of a template, of which a fork is made. Both run
    on. `<` is in A alone, `>` in B alone, `~` in both and differs.
    """
    found = run_async(_compare(ours, theirs))
    if as_json:
        show_json(_describe(found))
    else:
        _show(found)


async def _compare(ours: str, theirs: str) -> Difference:
    async with AsyncExitStack() as stack:
        first, second = await _enter(ours, stack), await _enter(theirs, stack)
        return await first.diff(second)


async def _enter(text: str, stack: AsyncExitStack) -> VM:
    """The machine of that name or id, or a fork of the template of that name."""
    try:
        return await stack.enter_async_context(VM.connect(text))
    except VMNotFound as error:
        try:
            template = await Template.open(text, config=get_settings().vm)
        except TemplateNotFound:
            raise error from None
    return await stack.enter_async_context(await template.fork())


def _describe(found: Difference) -> dict[str, Any]:
    return {**asdict(found), "memory": {**asdict(found.memory), "mib": found.memory.mib}}


def _show(found: Difference) -> None:
    for file in found.files:
        aspects = f"  ({', '.join(file.aspects)})" if file.aspects else ""
        click.echo(f"{_SIGNS[file.where]} {_in_a_line(file.path)}{aspects}")
    _show_more(found.more_files, "files")
    for process in found.processes:
        sign = _SIGNS["ours" if process.is_ours else "theirs"]
        click.echo(f"{sign} process {process.pid}: {_in_a_line(' '.join(process.argv))}")
    _show_more(found.more_processes, "processes")
    memory = found.memory
    click.echo(
        f"~ memory: {memory.pages:,} pages differ ({memory.mib:.1f} MiB); A has {memory.ours / _PAGES_A_MIB:.1f} MiB of"
        f" its own, B {memory.theirs / _PAGES_A_MIB:.1f} MiB"
    )


def _in_a_line(text: str) -> str:
    return printable(text.replace("\n", "\\n"))


def _show_more(count: int, what: str) -> None:
    if count:
        click.echo(f"... and {count:,} {what} more")

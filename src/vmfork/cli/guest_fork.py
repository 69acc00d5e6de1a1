"""`vmfork guest-fork`: programs of a machine may fork it, for as long as the command runs."""

from __future__ import annotations

import click

from vmfork.api.vm import VM
from vmfork.cli.forwarder import OPTION, leave_streams
from vmfork.cli.found import id_argument
from vmfork.cli.loop import run_async
from vmfork.cli.options import json_option
from vmfork.cli.show import show_json


@click.command("guest-fork")
@id_argument
@click.argument("most", metavar="N", type=int)
@click.option(OPTION, "is_left", is_flag=True, hidden=True, help="Go on when whoever asked has ended.")
@json_option
def command(vm_id: str, most: int, is_left: bool, as_json: bool) -> None:
    """Let programs of machine ID fork it, until this command is ended.

    The machine is one that `start` made. Its programs fork it by `vmfork_guest.fork()`, and N machines may live beside
    it, of all generations together. They end with this command, as it does with ID. The id of each that ID made itself
    is printed when it is there.
    """

    async def work() -> None:
        async with VM.connect(vm_id) as vm:
            await vm.allow_guest_fork(most)
            if as_json:
                show_json({"id": vm.id, "allow_guest_fork": most})
            elif not is_left:
                click.echo(f"{vm.id} may be forked from inside, to {most} machines beside it", err=True)
            if is_left:
                leave_streams()
            seen: set[str] = set()
            async for children in vm.follow_children():
                for child in children:
                    if child not in seen and not (as_json or is_left):
                        click.echo(child)
                seen = {*children}
            await vm.ping()  # raises why the machine is gone

    run_async(work())

"""`vmfork forward`: ports of the host that lead into a machine, for as long as the command runs."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import click

from vmfork.api.vm import VM
from vmfork.cli.forwarder import OPTION, leave_streams
from vmfork.cli.found import id_argument
from vmfork.cli.loop import run_async
from vmfork.cli.options import json_option
from vmfork.cli.show import show_json
from vmfork.network.address import parse_forward

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmfork.network.forward import Forward


@click.command("forward")
@id_argument
@click.argument("ports", nargs=-1, required=True, metavar="[HOST:]GUEST...")
@click.option(OPTION, "is_left", is_flag=True, hidden=True, help="Go on when whoever asked has ended.")
@json_option
def command(vm_id: str, ports: Sequence[str], is_left: bool, as_json: bool) -> None:
    """Forward ports of the host to ports of machine ID, until this command is ended.

    HOST is a port, an address with a port (127.0.0.1:8080, [::1]:8080), or the path of a Unix socket. Without it a free
    port of 127.0.0.1 is taken. What leads where is printed.
    """
    wanted = [parse_forward(text) for text in ports]

    async def work() -> None:
        async with VM.connect(vm_id) as vm, AsyncExitStack() as stack:
            opened = [await stack.enter_async_context(vm.forward(guest, str(host))) for host, guest in wanted]
            _tell(opened, as_json=as_json)
            if is_left:
                leave_streams()
            await opened[0].wait_closed()
            await vm.ping()  # raises why the machine is gone

    run_async(work())


def _tell(opened: Sequence[Forward], *, as_json: bool) -> None:
    if as_json:
        show_json([{"guest_port": each.guest_port, "address": each.address} for each in opened])
        return
    for each in opened:
        click.echo(f"{each.guest_port} -> {each.address}")

"""`vmfork reverse`: a service of the host at a port of a machine, for as long as the command runs."""

from __future__ import annotations

import click

from vmfork.api.vm import VM
from vmfork.cli.found import id_argument
from vmfork.cli.loop import run_async
from vmfork.cli.options import json_option
from vmfork.cli.show import show_json
from vmfork.errors import GuestError
from vmfork.network.address import parse_port


@click.command("reverse")
@id_argument
@click.argument("host", metavar="HOST")
@click.argument("guest", metavar="GUEST")
@json_option
def command(vm_id: str, host: str, guest: str, as_json: bool) -> None:
    """Let programs of machine ID reach one service of the host, until this command is ended.

    HOST is where the service is: a port of 127.0.0.1, an address with a port, or the path of a Unix socket. GUEST is
    the port of the machine's own 127.0.0.1 that leads there. Every program of the machine can connect to it.
    """
    port = parse_port(guest, field="guest")

    async def work() -> None:
        async with VM.connect(vm_id) as vm, vm.reverse(host, port) as reverse:
            if as_json:
                show_json({"guest_port": reverse.guest_port, "address": reverse.address})
            else:
                click.echo(f"{reverse.guest_port} -> {reverse.address}")
            await reverse.wait_closed()
            await vm.ping()  # raises why the machine is gone
            hint = "start it again; in what was made of the freeze, start one of its own"
            raise GuestError("the port of the guest ended: the machine was frozen", hint=hint)

    run_async(work())

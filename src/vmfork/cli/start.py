"""`vmfork start`: a machine that outlives the command."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmfork.cli.carry import read_baggage
from vmfork.cli.loop import run_async
from vmfork.cli.machine import find_template
from vmfork.cli.options import (
    cpus_option,
    get_settings,
    json_option,
    memory_option,
    parse_label,
    parse_limit,
    parse_variable,
    template_option,
)
from vmfork.cli.show import show_json

if TYPE_CHECKING:
    from vmfork.api.vm import VM


@click.command("start")
@template_option
@click.option("--name", "vm_name", default="", metavar="NAME", help="Call it so. No other living machine may have it.")
@click.option("--label", "labels", multiple=True, metavar="K=V", help="Label it. Repeatable.")
@click.option("--ttl", metavar="TIME", help="End it after this time: 30, 5m, 1h. Default: never.")
@click.option("--idle-ttl", metavar="TIME", help="End it when nobody was connected for this time. Default: never.")
@click.option("-e", "--env", "variables", multiple=True, metavar="K[=V]", help="Set a variable of all its programs.")
@click.option(
    "--file",
    "files",
    multiple=True,
    metavar="HOST:GUEST",
    help="Put a file or folder into it, with modes. Repeatable.",
)
@cpus_option
@memory_option
@json_option
def command(
    name: str | None,
    vm_name: str,
    labels: tuple[str, ...],
    ttl: str | None,
    idle_ttl: str | None,
    variables: tuple[str, ...],
    files: tuple[str, ...],
    cpus: int | None,
    memory: str | None,
    as_json: bool,
) -> None:
    """Start a machine that outlives this command, and print its id.

    It is a fork of the template named with -t, else of `default`, built the first time. It runs until `vmfork stop`,
    until its time to live is over, or until the host ends; several processes may use it at the same time.
    """
    settings = get_settings({"vm.cpus": cpus, "vm.memory_mib": memory})
    ttl_s, idle_ttl_s = parse_limit(ttl, field="ttl") or 0.0, parse_limit(idle_ttl, field="idle-ttl") or 0.0
    env = dict(parse_variable(text) for text in variables)
    baggage = read_baggage(files)
    labelled = dict(parse_label(text) for text in labels)

    async def work() -> VM:
        template = await find_template(name, settings)
        async with template.start(
            name=vm_name,
            labels=labelled,
            ttl_s=ttl_s,
            idle_ttl_s=idle_ttl_s,
            env=env,
            files=baggage.files,
            cpus=None if cpus is None else settings.vm.cpus,
            memory_mib=None if memory is None else settings.vm.memory_mib,
        ) as vm:
            try:
                await baggage.put_folders(vm)
            except BaseException:
                await vm.stop(grace_s=0)
                raise
            return vm

    vm = run_async(work())
    if as_json:
        show_json({"id": vm.id, "name": vm.name})
    else:
        click.echo(vm.id)

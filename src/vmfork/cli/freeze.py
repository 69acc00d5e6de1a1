"""`vmfork freeze`: a template of a running machine."""

from __future__ import annotations

import click

from vmfork.api.vm import VM
from vmfork.cli.complete import shared_vms
from vmfork.cli.loop import run_async
from vmfork.cli.options import get_settings, json_option
from vmfork.cli.show import show_json


@click.command("freeze")
@click.argument("vm_id", metavar="ID", shell_complete=shared_vms)
@click.argument("name", metavar="NAME")
@click.option("--replace", is_flag=True, help="Replace a template of that name.")
@click.option("--hooks", is_flag=True, help="Run the hooks of before a freeze in ID.")
@click.option("--secret-path", "secret_paths", multiple=True, metavar="PATH", help="Refuse when it exists. Repeatable.")
@click.option("--secret-env", "secret_env", multiple=True, metavar="NAME", help="Refuse when a process has it.")
@click.option("--allow-secrets", is_flag=True, help="Freeze all the same, and note them.")
@json_option
def command(
    vm_id: str,
    name: str,
    replace: bool,
    hooks: bool,
    secret_paths: tuple[str, ...],
    secret_env: tuple[str, ...],
    allow_secrets: bool,
    as_json: bool,
) -> None:
    """Make the template NAME of machine ID, which runs on, as it is now.

    The template needs neither ID nor the template that ID is a fork of.
    """
    is_kept = get_settings().vm.persist

    async def work() -> str:
        async with VM.connect(vm_id) as vm:
            template = await vm.freeze(
                name,
                replace=replace,
                persist=is_kept,
                hooks=hooks,
                secret_paths=secret_paths,
                secret_env=secret_env,
                allow_secrets=allow_secrets,
            )
            return template.generation

    generation = run_async(work())
    if as_json:
        show_json({"name": name, "generation": generation})
    else:
        click.echo(f"template {name!r} is ready")

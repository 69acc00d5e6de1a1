"""`vmfork exec`: one command in a machine that `start` made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmfork.api.vm import VM
from vmfork.cli.found import id_argument, tell_paused
from vmfork.cli.loop import run_async
from vmfork.cli.options import VARIABLE_HELP, json_option, parse_limit, parse_variables
from vmfork.cli.program import check_lending, make_kept, run_command
from vmfork.cli.show import show_json
from vmfork.cli.status import ProgramCommand
from vmfork.cli.terminal import read_window, terminal_env
from vmfork.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.command("exec", cls=ProgramCommand, context_settings={"allow_interspersed_args": False})
@click.option("-e", "--env", "variables", multiple=True, metavar="K[=V]", help=VARIABLE_HELP)
@click.option("-i", "--interactive", is_flag=True, help="Pass standard input on, as is always done.")
@click.option("-t", "--tty", is_flag=True, help="Give CMD a terminal: ours, for as long as it runs.")
@click.option("-d", "--detach", is_flag=True, help="Leave CMD running in the background, and print its process id.")
@click.option("-w", "--workdir", default="", metavar="DIR", help="Run in this folder of the guest.")
@click.option("-u", "--user", default="", metavar="USER", help="Run as this user of the guest, a name or a number.")
@click.option("--timeout", metavar="S", help="Kill the command after this time: 30, 1.5s, 5m. Exit status 124.")
@json_option
@click.option(
    "--max-output", metavar="SIZE", help="With --json, end a command that writes more than this. Default: 256M."
)
@id_argument
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[--] CMD [ARG]...")
def command(
    variables: Sequence[str],
    interactive: bool,
    tty: bool,
    detach: bool,
    workdir: str,
    user: str,
    timeout: str | None,
    as_json: bool,
    max_output: str | None,
    vm_id: str,
    argv: Sequence[str],
) -> int:
    """Run CMD in machine ID, pass its input and output through.

    Others may use the machine meanwhile. The exit status is as that of `run`. When this command ends, so does CMD,
    but for -d: then it runs on, and `vmfork logs --pid` shows what it writes.
    """
    argv = _without_dashes(argv)
    limit_s, kept = parse_limit(timeout, field="timeout"), make_kept(max_output, as_json=as_json)
    del interactive  # input is passed on all the same
    if detach and (tty or timeout is not None or max_output is not None):
        raise ConfigError("detach", True, "nobody is there for a terminal or a limit", hint="leave out -d")
    if tty:
        check_lending(as_json=as_json)
    env = (terminal_env() if tty else {}) | parse_variables(variables)

    async def work() -> int:
        async with VM.connect(vm_id) as vm:
            tell_paused(vm.id)
            if detach:
                process = await vm.start(argv, env=env, cwd=workdir, user=user, background=True)
                if as_json:
                    show_json({"id": vm.id, "pid": process.pid})
                else:
                    click.echo(process.pid)
                return 0
            return await run_command(
                vm,
                argv,
                env=env,
                workdir=workdir,
                user=user,
                limit_s=limit_s,
                kept=kept,
                window=read_window() if tty else None,
            )

    return run_async(work())


def _without_dashes(argv: Sequence[str]) -> Sequence[str]:
    """The command, where `--` stands before it: `exec ID -- CMD`. Raises `ConfigError` when nothing follows."""
    command = argv[1:] if argv[0] == "--" else argv
    if not command:
        raise ConfigError("cmd", "", "no command was given", hint="vmfork exec ID CMD [ARG]...")
    return command

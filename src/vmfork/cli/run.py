"""`vmfork run`: one command in a fork of its own."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack, nullcontext
from functools import partial
from typing import TYPE_CHECKING

import click

from vmfork.cli.carry import read_baggage, read_output
from vmfork.cli.loop import run_async
from vmfork.cli.machine import Wanted, take_vm
from vmfork.cli.network import network_options, read_network, tell_log
from vmfork.cli.options import (
    PORT_HELP,
    VARIABLE_HELP,
    card_option,
    cpus_option,
    disk_option,
    get_settings,
    given_size,
    guest_fork_option,
    isolation_option,
    json_option,
    memory_option,
    no_factory_option,
    parse_limit,
    parse_variables,
    template_option,
    wait_option,
)
from vmfork.cli.program import check_lending, make_kept, run_command
from vmfork.cli.start import Alone, check_answered, check_held, read_ports, read_standing, standing_options, start_alone
from vmfork.cli.status import ProgramCommand
from vmfork.cli.terminal import read_window, terminal_env
from vmfork.config import VMConfig
from vmfork.errors import ConfigError
from vmfork.machine.request import Standing
from vmfork.machine.trace import detailed_timings
from vmfork.network.address import parse_forward

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmfork.config import CardChoice
    from vmfork.config.loader import Settings
    from vmfork.machine.timings import Timings


@click.command("run", cls=ProgramCommand, context_settings={"allow_interspersed_args": False})
@template_option
@click.option("--image", metavar="I", help="Without -t: fork a template of this image, built the first time.")
@click.option("--entrypoint", is_flag=True, help="Put the image's entrypoint before CMD.")
@click.option("-e", "--env", "variables", multiple=True, metavar="K[=V]", help=VARIABLE_HELP)
@click.option(
    "--file",
    "files",
    multiple=True,
    metavar="HOST:GUEST[:MODE]",
    help="Put a file or a folder into the fork, with modes. Repeatable.",
)
@click.option(
    "--out",
    "outs",
    multiple=True,
    metavar="GUEST[:HOST]",
    help="Copy a file or a folder out of the fork when CMD has ended, also when it failed. Repeatable.",
)
@click.option("-i", "--interactive", is_flag=True, help="Pass standard input on, as is always done.")
@click.option("--tty", is_flag=True, help="Give CMD a terminal: ours, for as long as it runs.")
@click.option("-it", "-ti", "both", is_flag=True, help="The two above. Alone, -t names a template.")
@click.option("-d", "--detach", is_flag=True, help="Leave the machine and CMD running, and print its id: see start.")
@standing_options
@click.option("-w", "--workdir", default="", metavar="DIR", help="Run in this folder of the guest.")
@click.option("-p", "--port", "ports", multiple=True, metavar="[HOST:]GUEST", help=PORT_HELP)
@network_options
@guest_fork_option
@card_option
@click.option("--timeout", metavar="S", help="Kill the command after this time: 30, 1.5s, 5m. Exit status 124.")
@cpus_option
@memory_option
@disk_option
@isolation_option
@json_option
@click.option(
    "--max-output", metavar="SIZE", help="With --json, end a command that writes more than this. Default: 256M."
)
@no_factory_option
@wait_option
@click.option(
    "--timings", is_flag=True, help="Tell on standard error where the machine came from and where the time went."
)
@click.argument("argv", nargs=-1, type=click.UNPROCESSED, metavar="[--] [CMD [ARG]...]")
def command(
    name: str | None,
    image: str | None,
    entrypoint: bool,
    variables: tuple[str, ...],
    files: tuple[str, ...],
    outs: tuple[str, ...],
    interactive: bool,
    tty: bool,
    both: bool,
    detach: bool,
    vm_name: str,
    labels: tuple[str, ...],
    ttl: str | None,
    idle_ttl: str | None,
    workdir: str,
    ports: tuple[str, ...],
    network: str | None,
    allow: tuple[str, ...],
    network_log_only: bool,
    allow_guest_fork: int,
    card: CardChoice,
    timeout: str | None,
    cpus: int | None,
    memory: str | None,
    disk: str | None,
    require_isolation: str | None,
    as_json: bool,
    max_output: str | None,
    no_factory: bool,
    wait: str | None,
    timings: bool,
    argv: tuple[str, ...],
) -> int:
    """Run CMD in a fresh fork, pass its input and output through, leave nothing.

    Without -t the fork comes from the factory, where [factory] names a template, a pool or a server; else from the
    template `default`, built the first time. The exit status is the command's; 124 when its time was up, 125 when
    vmfork failed, 126 when CMD cannot be run, 127 when there is none, 128+n when signal n ended it.

    Without CMD, what the container image says that it runs. With --entrypoint, CMD is behind the image's entrypoint, as
    in docker run IMAGE CMD; else it runs alone.

    It reaches nothing, unless --allow names it, or --network all. A name, labels and times to live are for a machine
    that is left running: -d.
    """
    made = {"vm.require_isolation": require_isolation, "vm.wait_s": wait, "vm.image": image}
    settings = get_settings({"vm.cpus": cpus, "vm.memory_mib": memory, "vm.disk_mib": disk, **made})
    if image is not None and name is not None:
        raise ConfigError("image", image, "a template has an image already", hint="leave out -t or --image")
    of_image = entrypoint or not argv
    factory = None if no_factory or image is not None else get_settings(made).factory
    limit_s, kept = parse_limit(timeout, field="timeout"), make_kept(max_output, as_json=as_json)
    standing = read_standing(vm_name, labels, ttl, idle_ttl)
    policy = read_network(network, allow, log_only=network_log_only)
    if detach:
        passed = {"tty": tty or both or interactive, "timeout": timeout, "out": outs, "max-output": max_output}
        _check_command(argv, name, settings)
        _check_detached(passed | {"timings": timings})
        alone = Alone(
            template=name,
            settings=settings,
            baggage=read_baggage(files),
            env=parse_variables(variables),
            argv=argv,
            of_image=of_image,
            workdir=workdir,
            **given_size(settings, cpus=cpus, memory=memory),
            standing=standing,
            network=check_held(policy, standing),
            allow_guest_fork=check_answered(allow_guest_fork, standing),
            card=card,
            ports=read_ports(ports, standing),
        )
        start_alone(alone, as_json=as_json)
        return 0
    if standing != Standing():
        reason = "a machine that ends with this command has no name, labels or times"
        raise ConfigError("detach", False, reason, hint="add -d")
    del interactive  # input is passed on all the same
    has_terminal = tty or both
    if has_terminal:
        check_lending(as_json=as_json)
    env = (terminal_env() if has_terminal else {}) | parse_variables(variables)
    baggage = read_baggage(files)
    wanted_ports = [parse_forward(text) for text in ports]
    outputs = [read_output(text) for text in outs]

    wanted = Wanted(
        settings=settings,
        factory=factory,
        template=name,
        files=baggage.files,
        **given_size(settings, cpus=cpus, memory=memory),
        network=policy,
        allow_guest_fork=allow_guest_fork,
        card=card,
    )
    if not wanted.is_of_factory:
        _check_command(argv, name, settings)

    async def work() -> int:
        async with AsyncExitStack() as stack:
            with detailed_timings() if timings else nullcontext():
                vm = await take_vm(wanted, stack)
            await baggage.put_folders(vm)
            for host, guest in wanted_ports:
                opened = await stack.enter_async_context(vm.forward(guest, str(host)))
                click.echo(f"port    {opened.guest_port} -> {opened.address}", err=True)
            forked = time.perf_counter()
            program = await vm.image_argv(argv) if of_image else argv
            run = partial(run_command, vm, program, env=env, workdir=workdir, limit_s=limit_s, outputs=outputs)
            status = await run(kept=kept, window=read_window() if has_terminal else None)
            if network_log_only:
                tell_log(vm.network_log)
            if timings:
                click.echo(f"from    {vm.source}", err=True)
                _show_timings(vm.timings, time.perf_counter() - forked)
            return status

    return run_async(work())


def _check_command(argv: Sequence[str], template: str | None, settings: Settings) -> None:
    """Raises `click.UsageError` where nothing says what to run: the image `default` is no container image."""
    if not argv and template is None and settings.vm.image == VMConfig().image:
        raise click.UsageError("Missing argument '[--] CMD [ARG]...'.")


def _check_detached(options: Mapping[str, object]) -> None:
    """Raises `ConfigError` for an option that means nothing for what is left running."""
    for name, value in options.items():
        if value:
            raise ConfigError(name, value, "is for a command that is waited for", hint="leave out -d")


def _show_timings(timings: Timings, program_s: float) -> None:
    """One line for each phase, in its order, then the fork as a whole and the program."""
    phases = ("spawn", "load", "adopt", "clock", "thaw", "fit")
    told = {name: getattr(timings, f"{name}_s") for name in phases}
    told |= {"fork": timings.total_s, "program": program_s}
    for name, seconds in told.items():
        if seconds or name != "fit":
            click.echo(f"{name:8}{seconds * 1000:9.1f} ms", err=True)

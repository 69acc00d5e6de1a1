"""`vmfork start`: a machine that outlives the command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vmfork.cli.carry import read_baggage
from vmfork.cli.forwarder import leave_answerer, leave_forwarder, leave_network
from vmfork.cli.loop import run_async
from vmfork.cli.machine import disk_of, find_template
from vmfork.cli.network import network_options, read_network
from vmfork.cli.options import (
    PORT_HELP,
    card_option,
    cpus_option,
    disk_option,
    env_option,
    files_option,
    get_settings,
    given_size,
    guest_fork_option,
    isolation_option,
    json_option,
    memory_option,
    parse_label,
    parse_limit,
    parse_variables,
    template_option,
    wait_option,
)
from vmfork.cli.show import show_json
from vmfork.config import find_places
from vmfork.errors import ConfigError
from vmfork.machine.folder import folder_of
from vmfork.machine.kept import note_command
from vmfork.machine.request import Standing, check_allowed
from vmfork.network.address import parse_forward

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vmfork.api.vm import VM
    from vmfork.cli.carry import Baggage
    from vmfork.config import CardChoice
    from vmfork.config.loader import Settings
    from vmfork.network.address import HostAddress
    from vmfork.network.policy import NetworkPolicy

_F = TypeVar("_F", bound="Callable[..., object]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """A machine that is to outlive the command, and the program that it begins with, if any.

    With `of_image` that is its image's entrypoint and `argv`, or where that is empty the image's command.
    """

    template: str | None
    settings: Settings
    baggage: Baggage
    env: Mapping[str, str]
    argv: Sequence[str] = ()
    of_image: bool = False
    workdir: str = ""
    cpus: int | None = None
    memory_mib: int | None = None
    standing: Standing
    ports: Sequence[tuple[HostAddress, int]] = ()
    network: NetworkPolicy = "none"
    card: CardChoice = "none"
    allow_guest_fork: int = 0


def start_alone(wanted: Alone, *, as_json: bool) -> None:
    """The machine runs, its program too, and its id was printed. After a failure nothing is left."""
    told = run_async(_start(wanted))
    if as_json:
        show_json(told)
        return
    for port in told.get("ports", ()):
        click.echo(f"port    {port['guest_port']} -> {port['address']}", err=True)
    click.echo(told["id"])


async def _start(wanted: Alone) -> dict[str, Any]:
    template = await find_template(wanted.template, wanted.settings)
    async with template.start(
        name=wanted.standing.name,
        labels=wanted.standing.labels,
        ttl_s=wanted.standing.ttl_s,
        idle_ttl_s=wanted.standing.idle_ttl_s,
        env=wanted.env,
        files=wanted.baggage.files,
        cpus=wanted.cpus,
        memory_mib=wanted.memory_mib,
        network=wanted.network,
        card=wanted.card,
        disk=disk_of(wanted.template, wanted.settings),
    ) as vm:
        told: dict[str, Any] = {"id": vm.id, "name": vm.name}
        try:
            await wanted.baggage.put_folders(vm)
            if wanted.network != "none":
                await _pass_on_network(vm, wanted.network)
            if wanted.allow_guest_fork:
                await leave_answerer(vm.id, wanted.allow_guest_fork)
            if wanted.ports:
                told["ports"] = await leave_forwarder(vm.id, wanted.ports)
            argv = await vm.image_argv(wanted.argv) if wanted.of_image else wanted.argv
            if argv:
                program = await vm.start(argv, cwd=wanted.workdir, background=True)
                note_command(folder_of(find_places().vms, vm.id), program.pid)
                told["pid"] = program.pid
        except BaseException:
            await vm.stop(grace_s=0)
            raise
    return told


async def _pass_on_network(vm: VM, policy: NetworkPolicy) -> None:
    """A process that stays holds the policy, which was ours while hooks ran. Between the two nothing may be reached."""
    await vm.set_network("none")
    await leave_network(vm.id, policy)


def standing_options(command: _F) -> _F:
    """The options that say how a machine stands on its own; `read_standing` reads them."""
    for option in (
        click.option("--idle-ttl", metavar="TIME", help="End it when nobody used it for this time. Default: never."),
        click.option("--ttl", metavar="TIME", help="End it after this time: 30, 5m, 1h. Default: never."),
        click.option("--label", "labels", multiple=True, metavar="K=V", help="Label it. Repeatable."),
        click.option("--name", "vm_name", default="", metavar="NAME", help="Its name, of no other living machine."),
    ):
        command = option(command)
    return command


def read_standing(name: str, labels: Sequence[str], ttl: str | None, idle_ttl: str | None) -> Standing:
    """What the options say. Raises `ConfigError` for an invalid name, label or time."""
    return Standing(
        name=name,
        labels=dict(parse_label(text) for text in labels),
        ttl_s=parse_limit(ttl, field="ttl") or 0.0,
        idle_ttl_s=parse_limit(idle_ttl, field="idle-ttl") or 0.0,
    )


def read_ports(texts: Sequence[str], standing: Standing) -> Sequence[tuple[HostAddress, int]]:
    """What `-p` says of a machine that is left running. Raises `ConfigError`, also where it would never be idle."""
    if texts:
        _check_idle(standing, "a machine whose ports are forwarded is never idle: who forwards them is a client of it")
    return [parse_forward(text) for text in texts]


def check_held(policy: NetworkPolicy, standing: Standing) -> NetworkPolicy:
    """`policy` itself. Raises `ConfigError` for a machine that is to end when idle, and never would be."""
    if policy != "none":
        _check_idle(standing, "a machine that has a way out is never idle: who holds its policy is a client of it")
    return policy


def check_answered(allow_guest_fork: int, standing: Standing) -> int:
    """`allow_guest_fork` itself. Raises `ConfigError`, also for a machine that is to end when idle, and never would."""
    if check_allowed(allow_guest_fork):
        _check_idle(standing, "a machine whose programs may fork it is never idle: who answers them is a client of it")
    return allow_guest_fork


def _check_idle(standing: Standing, reason: str) -> None:
    if standing.idle_ttl_s:
        raise ConfigError("idle-ttl", standing.idle_ttl_s, reason, hint="give it a time to live: --ttl")


@click.command("start", context_settings={"allow_interspersed_args": False})
@template_option
@standing_options
@env_option
@files_option
@cpus_option
@memory_option
@disk_option
@isolation_option
@wait_option
@click.option("-w", "--workdir", default="", metavar="DIR", help="Run CMD in this folder of the guest.")
@click.option("-p", "--port", "ports", multiple=True, metavar="[HOST:]GUEST", help=PORT_HELP)
@network_options
@card_option
@guest_fork_option
@json_option
@click.argument("argv", nargs=-1, type=click.UNPROCESSED, metavar="[-- CMD [ARG]...]")
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
    disk: str | None,
    require_isolation: str | None,
    wait: str | None,
    workdir: str,
    ports: tuple[str, ...],
    network: str | None,
    allow: tuple[str, ...],
    network_log_only: bool,
    card: CardChoice,
    allow_guest_fork: int,
    as_json: bool,
    argv: Sequence[str],
) -> None:
    """Start a machine that outlives this command, and print its id.

    It is a fork of the template named with -t, else of `default`, built the first time. It runs until `vmfork stop`,
    until its time to live is over, or until the host ends; several processes may use it at the same time. CMD runs in
    it in the background: `vmfork logs` shows what it writes. The machine goes on when CMD has ended. Its ports are
    forwarded, what it may reach is held, and programs that fork it are answered, by processes that end with it.
    """
    made = {"vm.require_isolation": require_isolation, "vm.wait_s": wait}
    settings = get_settings({"vm.cpus": cpus, "vm.memory_mib": memory, "vm.disk_mib": disk, **made})
    standing = read_standing(vm_name, labels, ttl, idle_ttl)
    wanted = Alone(
        template=name,
        settings=settings,
        baggage=read_baggage(files),
        env=parse_variables(variables),
        argv=argv,
        workdir=workdir,
        **given_size(settings, cpus=cpus, memory=memory),
        standing=standing,
        ports=read_ports(ports, standing),
        network=check_held(read_network(network, allow, log_only=network_log_only), standing),
        card=card,
        allow_guest_fork=check_answered(allow_guest_fork, standing),
    )
    start_alone(wanted, as_json=as_json)

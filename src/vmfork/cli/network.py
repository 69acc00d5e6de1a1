"""`vmfork network`: what a machine may reach; and the options by which `run` and `start` are told of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import click

from vmfork.api.vm import VM
from vmfork.cli.forwarder import OPTION, leave_streams
from vmfork.cli.found import find, id_argument
from vmfork.cli.loop import run_async
from vmfork.cli.options import json_option
from vmfork.cli.show import show_json
from vmfork.config import find_places
from vmfork.errors import ConfigError
from vmfork.machine.folder import folder_of
from vmfork.machine.ways import find_held, load_ways

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmfork.network.decision import Decision
    from vmfork.network.policy import NetworkPolicy

_F = TypeVar("_F", bound="Callable[..., object]")


def network_options(command: _F) -> _F:
    """The options that say what a machine may reach; `read_network` reads them."""
    for option in (
        click.option(
            "--network-log-only", is_flag=True, help="Let it reach what --allow has not, too, and tell that at the end."
        ),
        click.option(
            "--allow",
            multiple=True,
            metavar="PATTERN",
            help="Let it reach this: NAME, *.NAME, ADDRESS or NETWORK, with :PORT or at 80 and 443. Repeatable.",
        ),
        click.option("--network", metavar="none|all", help="Let it reach nothing, as by default, or all the internet."),
    ):
        command = option(command)
    return command


def read_network(network: str | None, allow: Sequence[str], *, log_only: bool) -> NetworkPolicy:
    """The policy that the options say. Raises `ConfigError` for what is none, or two at a time."""
    if network is not None and (allow or (log_only and network != "all")):
        reason = "--allow says what it may reach, and --network-log-only that it may reach all"
        raise ConfigError("network", network, reason, hint="leave out --network")
    if allow or log_only:
        listed: NetworkPolicy = load_ways().Allow(*allow, log_only=log_only)
        return listed
    named: NetworkPolicy = "none" if network is None else load_ways().check_policy(network)
    return named


def tell_log(log: Sequence[Decision]) -> None:
    """What the machine asked for was told on standard error, each host once, with the option that would allow it."""
    for allowed, host in dict.fromkeys((each.allowed, _host(each)) for each in log):
        click.echo(f"network {'--allow' if allowed else 'denied'} {host}", err=True)


def _host(decision: Decision) -> str:
    name = f"[{decision.host}]" if ":" in decision.host else decision.host
    return name if decision.port in (80, 443) else f"{name}:{decision.port}"


@click.command("network")
@id_argument
@network_options
@click.option(OPTION, "is_left", is_flag=True, hidden=True, help="Go on when whoever asked has ended.")
@json_option
def command(
    vm_id: str,
    network: str | None,
    allow: tuple[str, ...],
    network_log_only: bool,
    is_left: bool,
    as_json: bool,
) -> None:
    """Show what programs of machine ID reach, or let them reach more until this command is ended.

    The machine is one that `start` made. With options, what it reaches is printed, and then each connection that a
    program asks for, with what was decided and why. Programs that are started from then on find the proxy by their
    environment.
    """
    policy = read_network(network, allow, log_only=network_log_only)
    if policy == "none":
        _show(vm_id, as_json=as_json)
        return

    async def work() -> None:
        async with VM.connect(vm_id) as vm:
            await vm.set_network(policy)
            if as_json:
                show_json({"id": vm.id, "allows": _allows(policy)})
            elif not is_left:
                click.echo(f"reaches {' '.join(_allows(policy))}")
            if is_left:
                leave_streams()
            async for decision in vm.follow_network():
                if not (as_json or is_left):
                    click.echo(str(decision))
            await vm.ping()  # raises why the machine is gone

    run_async(work())


def _show(vm_id: str, *, as_json: bool) -> None:
    record, _ = find(vm_id)
    held = find_held(folder_of(find_places().vms, record.id))
    if as_json:
        show_json({"id": record.id, "allows": held.allows if held else [], "pid": held.process.pid if held else None})
    elif held is None:
        click.echo("none, or what its owner holds")
    else:
        click.echo("\n".join(held.allows))


def _allows(policy: NetworkPolicy) -> Sequence[str]:
    return [policy] if isinstance(policy, str) else policy.entries

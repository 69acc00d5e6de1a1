"""`vmfork fork`: machines that go on where a running machine is."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import click

from vmfork.api.vm import VM
from vmfork.cli.carry import read_baggage
from vmfork.cli.complete import shared_vms
from vmfork.cli.forwarder import leave_answerer
from vmfork.cli.loop import run_async
from vmfork.cli.options import (
    card_option,
    disk_option,
    env_option,
    files_option,
    get_settings,
    guest_fork_option,
    json_option,
    parse_variables,
)
from vmfork.cli.show import show_json
from vmfork.cli.start import check_answered, read_standing, standing_options
from vmfork.config import LeftPrograms
from vmfork.host import kvm

if TYPE_CHECKING:
    from vmfork.cli.carry import Baggage
    from vmfork.config import CardChoice
    from vmfork.machine.request import Standing


@click.command("fork")
@click.argument("vm_id", metavar="ID", shell_complete=shared_vms)
@click.option("-n", "--count", type=int, default=1, metavar="N", help="How many forks. Default: 1.")
@standing_options
@env_option
@files_option
@click.option(
    "--programs",
    type=click.Choice(get_args(LeftPrograms)),
    default="keep",
    help="What becomes in the forks of programs that clients of ID have running. Default: keep.",
)
@card_option
@disk_option
@guest_fork_option
@click.option("--hooks", is_flag=True, help="Run hooks: of before a freeze in ID, of after a fork in each fork.")
@json_option
def command(
    vm_id: str,
    count: int,
    vm_name: str,
    labels: tuple[str, ...],
    ttl: str | None,
    idle_ttl: str | None,
    variables: tuple[str, ...],
    files: tuple[str, ...],
    programs: LeftPrograms,
    card: CardChoice,
    disk: str | None,
    allow_guest_fork: int,
    hooks: bool,
    as_json: bool,
) -> None:
    """Fork machine ID, which runs on, and print the ids of the forks.

    Each goes on where ID is now, with an identity of its own, and outlives this command as ID does. ID stands still for
    some milliseconds; its clients notice nothing. Programs that clients of ID have running run on in the forks, in the
    background. What programs of ID may fork is nothing to the forks, which have an allowance of their own.
    """
    standing = read_standing(vm_name, labels, ttl, idle_ttl)
    most = check_answered(allow_guest_fork, standing)
    baggage, env = read_baggage(files), parse_variables(variables)
    work = _fork(
        vm_id,
        count,
        standing,
        baggage,
        env,
        programs=programs,
        card=card,
        disk=disk,
        allow_guest_fork=most,
        hooks=hooks,
    )
    made = run_async(work)
    if as_json:
        show_json({"parent": made[0], "forked": made[1:]})
    else:
        for each in made[1:]:
            click.echo(each)


async def _fork(
    vm_id: str,
    count: int,
    standing: Standing,
    baggage: Baggage,
    env: dict[str, str],
    *,
    programs: LeftPrograms,
    card: CardChoice,
    disk: str | None,
    allow_guest_fork: int,
    hooks: bool,
) -> list[str]:
    """The id of the machine, and those of its forks."""
    async with VM.connect(vm_id) as vm:
        if vm.accel == "tcg" and get_settings().vm.accel == "auto":
            kvm.warn_if_forbidden()
        forks = await vm.fork(
            count,
            env=env,
            files=baggage.files,
            lasting=True,
            name=standing.name,
            labels=standing.labels,
            ttl_s=standing.ttl_s,
            idle_ttl_s=standing.idle_ttl_s,
            programs=programs,
            card=card,
            disk=disk,
            hooks=hooks,
        )
        try:
            for each in forks:
                await baggage.put_folders(each)
                if allow_guest_fork:
                    await leave_answerer(each.id, allow_guest_fork)
        except BaseException:
            for each in forks:
                await each.stop(grace_s=0)
            raise
        for each in forks:
            await each.aclose()
        return [vm.id, *(each.id for each in forks)]

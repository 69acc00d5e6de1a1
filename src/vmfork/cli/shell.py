"""`vmfork shell`: a login shell at our terminal, in a fork of its own or in a detached machine."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import click

from vmfork.api.vm import VM
from vmfork.cli.carry import read_baggage
from vmfork.cli.complete import free_vms
from vmfork.cli.found import tell_paused
from vmfork.cli.loop import run_async
from vmfork.cli.machine import Wanted, take_vm
from vmfork.cli.options import (
    cpus_option,
    get_settings,
    given_size,
    memory_option,
    no_factory_option,
    parse_variables,
    template_option,
)
from vmfork.cli.status import ProgramCommand
from vmfork.cli.terminal import check_terminal, lend_terminal, read_window, terminal_env
from vmfork.config import find_places
from vmfork.errors import ConfigError
from vmfork.machine.folder import has_broker
from vmfork.machine.handover import find_handle
from vmfork.machine.naming import find_vm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from vmfork.cli.carry import Baggage

# The shell that the guest's own list of users has for root.
_LOGIN = """
while IFS=: read -r name _ uid _ _ _ shell; do
    [ "$uid" != 0 ] || break
done < /etc/passwd
[ -x "$shell" ] || shell=/bin/sh
SHELL=$shell exec "$shell" -l
"""


@click.command("shell", cls=ProgramCommand)
@click.argument("vm_id", required=False, metavar="[ID]", shell_complete=free_vms)
@template_option
@click.option("-e", "--env", "variables", multiple=True, metavar="K[=V]", help="Set a variable, or pass K on.")
@click.option(
    "--file",
    "files",
    multiple=True,
    metavar="HOST:GUEST[:MODE]",
    help="Put a file or a folder into the fork, with modes. Repeatable.",
)
@click.option("-w", "--workdir", default="", metavar="DIR", help="Begin in this folder of the guest.")
@cpus_option
@memory_option
@no_factory_option
def command(
    vm_id: str | None,
    name: str | None,
    variables: tuple[str, ...],
    files: tuple[str, ...],
    workdir: str,
    cpus: int | None,
    memory: str | None,
    no_factory: bool,
) -> int:
    """Open a login shell in a fresh fork, or in machine ID.

    The fork comes from where that of `run` comes from, and nothing is left of it. A machine that `start` made others
    may use meanwhile. One that waits for an owner is ours alone for as long as the shell runs, and waits again
    afterwards, with what was left of its time to live. The exit status is the shell's; 125 when vmfork failed.
    """
    check_terminal()
    env = terminal_env() | parse_variables(variables)
    machine: Callable[[], AbstractAsyncContextManager[VM]]
    if vm_id is not None:
        _refuse_for_machine({"template": name, "file": files, "cpus": cpus, "memory": memory})
        found = vm_id
        machine = lambda: _borrowed(found)  # noqa: E731
    else:
        baggage = read_baggage(files)
        settings = get_settings({"vm.cpus": cpus, "vm.memory_mib": memory})
        wanted = Wanted(
            settings=settings,
            factory=None if no_factory else get_settings().factory,
            template=name,
            files=baggage.files,
            **given_size(settings, cpus=cpus, memory=memory),
        )
        machine = lambda: _forked(wanted, baggage)  # noqa: E731

    async def work() -> int:
        async with machine() as vm:
            async with vm.start(["/bin/sh", "-c", _LOGIN], env=env, cwd=workdir, pty=read_window()) as shell:
                status = await lend_terminal(shell)
            return status.exit_code

    return run_async(work())


def _refuse_for_machine(options: dict[str, object]) -> None:
    """Raises `ConfigError` for an option that only a fork can have."""
    for name, value in options.items():
        if value:
            raise ConfigError(
                name, value, "a machine that runs has it already", hint="leave it out, or leave out the ID"
            )


@asynccontextmanager
async def _forked(wanted: Wanted, baggage: Baggage) -> AsyncIterator[VM]:
    """A machine of its own, gone at the end."""
    async with AsyncExitStack() as stack:
        vm = await take_vm(wanted, stack)
        await baggage.put_folders(vm)
        yield vm


@asynccontextmanager
async def _borrowed(vm_id: str) -> AsyncIterator[VM]:
    """The machine may be used in the block. One that has no clients is ours alone there, and nobody's behind it."""
    vms = find_places().vms
    vm_id = find_vm(vms, vm_id).id
    tell_paused(vm_id)
    if has_broker(vms / vm_id):
        async with VM.connect(vm_id) as vm:
            yield vm
        return
    handle = find_handle(vms, vm_id)
    async with VM.attach(handle) as vm:
        try:
            yield vm
        finally:
            await vm.detach(ttl_s=handle.left_s())

"""What is done to several machines, one after the other. Apart from `found`: only this needs a client of a machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

from vmfork.cli.complete import shared_vms
from vmfork.cli.loop import run_async
from vmfork.cli.show import show_json

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from contextlib import AbstractAsyncContextManager

ids_argument = click.argument("vm_ids", nargs=-1, required=True, metavar="ID...", shell_complete=shared_vms)


class _HasId(Protocol):
    @property
    def id(self) -> str: ...


M = TypeVar("M", bound=_HasId)


def on_each(
    vm_ids: Sequence[str],
    act: Callable[[M], Coroutine[Any, Any, None]],
    done: str,
    *,
    as_json: bool,
    entered: Callable[[str], AbstractAsyncContextManager[M]],
) -> None:
    """`act` was done to one machine after the other, as their client; the first that fails ends it."""

    async def work(vm_id: str) -> str:
        async with entered(vm_id) as vm:
            await act(vm)
            return vm.id

    ids = []
    for vm_id in vm_ids:
        ids.append(run_async(work(vm_id)))
        if not as_json:
            click.echo(ids[-1])
    if as_json:
        show_json({done: ids})

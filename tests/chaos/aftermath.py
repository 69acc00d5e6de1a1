"""What must be so after any run, whoever was killed in it: the next command works, and one sweep leaves nothing."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import signal
import time
from contextlib import redirect_stdout, suppress
from typing import TYPE_CHECKING

from tests.chaos.lives import NEW, OLD
from tests.chaos.participants import descendants, strike
from tests.rules.traces import command_of
from tests.vm.cli_runner import left_of
from vmfork.aio import VM, StoreBusy, Template, TemplateNotFound, VMForkError, VMNotFound, find_places
from vmfork.cli.main import main as command
from vmfork.image import DiskStore
from vmfork.machine.base import BaseVM
from vmfork.machine.ended import FOLDER
from vmfork.machine.folder import has_broker, sweep_vms
from vmfork.machine.handover import find_handle
from vmfork.store import TemplateStore

if TYPE_CHECKING:
    from collections.abc import Callable

# What was killed is gone within milliseconds, a keeper whose machine nobody confirmed within 5 s. The rest is for a
# host with many times more to do than cores.
END_LIMIT_S = 60.0
_PAUSE_S = 0.02


def look(life: str, generation: str | None, template: str) -> list[str]:
    """What is not as it must be. `generation` was in force under `OLD` before. Nothing of the run is left."""
    strike(descendants(os.getpid()), signal.SIGCONT)  # who was stopped goes on first: it could neither answer nor end
    checks: tuple[Callable[[], None], ...] = (
        _end_machines,
        _end_processes,
        lambda: _next_works(template),
        lambda: _generations(life, generation),
        _sweep_once,
        lambda: _disks(life),
    )
    return [said for check in checks if (said := _said_by(check))]


def generation_of(name: str) -> str | None:
    return TemplateStore(find_places().templates).find_generation(name)


def _said_by(check: Callable[[], None]) -> str:
    try:
        check()
    except (AssertionError, VMForkError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _end_machines() -> None:
    """A machine that waits for its taker is taken, works, and is closed; any other is about to end."""
    asyncio.run(_take_waiting())


async def _take_waiting() -> None:
    end = time.monotonic() + END_LIMIT_S
    while records := await VM.list():
        assert time.monotonic() < end, f"machines that neither wait nor end: {[record.id for record in records]}"
        for record in records:
            try:
                await _take(record.id)
            except StoreBusy:
                pass  # its keeper is about to end it
            except VMNotFound:
                sweep_vms(find_places().vms)  # as the next command does: its keeper was killed while nobody owned it
        await asyncio.sleep(_PAUSE_S)


async def _take(vm_id: str) -> None:
    vms = find_places().vms
    if has_broker(vms / vm_id):
        await _use(vm_id)
        return
    handle = find_handle(vms, vm_id)
    if handle.adoption is None:
        await (await BaseVM.attach(handle)).aclose()
        return
    async with VM.attach(handle) as vm:
        if not handle.paused:
            with suppress(VMForkError):  # its guest may have crashed meanwhile
                await vm.exec(["true"], timeout_s=END_LIMIT_S)


async def _use(vm_id: str) -> None:
    """A machine that stands alone is used by another client, and ended."""
    async with VM.connect(vm_id) as vm:
        with suppress(VMForkError):  # its guest may have crashed meanwhile, its keeper been killed
            await vm.exec(["true"], timeout_s=END_LIMIT_S)
        with suppress(VMForkError):
            await vm.stop(grace_s=0)


def _end_processes() -> None:
    """Everything of the run has ended. Orphans are ours: we are their subreaper."""
    end = time.monotonic() + END_LIMIT_S
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        if time.monotonic() > end:
            left = descendants(os.getpid())
            told = [f"{pid}: {command_of(pid)[:200]}" for pid in left]
            strike(left, signal.SIGKILL)
            raise AssertionError(f"processes that do not end: {told}")
        time.sleep(_PAUSE_S)


def _next_works(template: str) -> None:
    asyncio.run(_fork(template))


async def _fork(template: str) -> None:
    async with (await Template.open(template)).fork() as vm:
        (await vm.exec(["true"], timeout_s=END_LIMIT_S)).check()


def _generations(life: str, before: str | None) -> None:
    """Under each name the old generation or the new one is there whole, or none where that may be. So is each layer."""
    store = TemplateStore(find_places().templates)
    found = _verified(store, OLD)
    if life == "remove":
        assert found in (before, None), f"{OLD} was {before} and is {found}"
    elif life == "replace":
        assert found is not None, f"{OLD} was {before} and is gone"
    else:
        assert found == before, f"{OLD} was {before} and is {found}"
    layers = TemplateStore(find_places().layers)
    for name in layers.list_names():
        layers.verify(name)
    if _verified(store, NEW) is not None:
        asyncio.run(_remove(NEW))


async def _remove(name: str) -> None:
    await (await Template.open(name)).remove()


def _verified(store: TemplateStore, name: str) -> str | None:
    if store.find_generation(name) is None:
        return None
    try:
        return store.verify(name).generation
    except TemplateNotFound:
        return None


def _sweep_once() -> None:
    places = find_places()
    # What is told of ended machines for a day, and so what they could go back to, is forgotten at once.
    shutil.rmtree(places.vms.with_name(FOLDER), ignore_errors=True)
    said = io.StringIO()
    with redirect_stdout(said):
        status = command(["gc", "--layers", "--json"])
    assert status == 0, said.getvalue()
    assert json.loads(said.getvalue())["left"] == [], said.getvalue()
    left = left_of(places.runtime)
    assert left == [], f"left after a sweep: {left}"


def _disks(life: str) -> None:
    """Of a life that froze one no disk is left which nobody has."""
    if life.startswith("disk"):
        disks = DiskStore(find_places().disks)
        assert (disks.find_waste(), disks.find_strangers()) == ([], []), "disks that nobody has are left after a sweep"

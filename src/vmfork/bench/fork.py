"""One fork as vmfork makes it, timed, and what the same fork is made from by hand."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vmfork.bench.raw import Source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmfork.api.template import Template
    from vmfork.config import Places


async def time_phases(template: Template) -> dict[str, float]:
    """Seconds from nothing: `fork` until it was handed out, `first_exec` to the result of its first program."""
    begun = time.perf_counter()
    async with await template.fork() as vm:
        ready = time.perf_counter()
        await vm.exec(["true"], check=True)
        return {"fork": ready - begun, "first_exec": time.perf_counter() - begun}


async def time_fork(template: Template) -> float:
    """Seconds from nothing to the result of a fork's first program."""
    return (await time_phases(template))["first_exec"]


async def get_source(template: Template, *, places: Places) -> Source:
    """What forks of `template` are made from by hand: the very arguments of a real fork, and the template's files."""
    async with await template.fork() as vm:
        argv = open_arguments(vm.argv)
    folder = places.templates / template.name / template.generation
    return Source(argv, {name: str(folder / name) for name in ("memory", "state")})


def open_arguments(argv: Sequence[str]) -> list[str]:
    """The arguments of a VM's QEMU, with placeholders for the numbers of its descriptors and its generation."""
    return [_open_numbers(part) for part in argv]


def _open_numbers(part: str) -> str:
    if part.startswith("memory-backend-file"):
        return ",".join("mem-path=/proc/self/fd/{memory}" if p.startswith("mem-path=") else p for p in part.split(","))
    for start, instead in (
        ("socket,id=qmp,fd=", "socket,id=qmp,fd={qmp},server=on,wait=off"),
        ("socket,id=agent,fd=", "socket,id=agent,fd={agent},server=on,wait=off"),
        ("socket,id=console,fd=", "socket,id=console,fd={console}"),
        ("vmgenid,guid=", "vmgenid,guid={generation}"),
        ("fd:", "fd:{state}"),
        ("file:/proc/self/fd/", "file:/proc/self/fd/{state}"),
    ):
        if part.startswith(start):
            return instead
    return part

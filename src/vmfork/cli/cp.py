"""`vmfork cp`: files and folders into a machine that `start` made, and out of it, by docker's rules."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, TypeAlias

import click

from vmfork.api.vm import VM
from vmfork.cli.loop import run_async
from vmfork.cli.options import json_option
from vmfork.cli.show import printable, show_json, shown_later
from vmfork.errors import ConfigError
from vmfork.host.packing import base_name
from vmfork.units import MIB, parse_size_mib
from vmfork.wire.given import MOST_COPIED, name_of

if TYPE_CHECKING:
    from vmfork.copied import Copied
    from vmfork.progress import ProgressListener

_MOST_TOLD = 10


@dataclass(frozen=True, slots=True)
class _There:
    """A place in a machine. A path that is not absolute counts from its root, as docker has it."""

    vm_id: str
    path: str


@dataclass(frozen=True, slots=True)
class _Here:
    """A place of the host; `-` is a tar on the standard streams."""

    path: str

    @property
    def is_tar(self) -> bool:
        return self.path == "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Manner:
    """How it is copied. `max_bytes` bounds what comes out of a machine."""

    archive: bool
    follow_link: bool
    max_bytes: int


_End: TypeAlias = _Here | _There


@click.command("cp")
@click.option("-a", "--archive", is_flag=True, help="Keep the numbers of owners and groups.")
@click.option("-L", "--follow-link", is_flag=True, help="Copy what a link SRC leads to, not the link.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress, and no names that were left out.")
@click.option("--max-size", metavar="SIZE", help="Take no more than this out of a machine. Default: 4G.")
@json_option
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
def command(
    archive: bool,
    follow_link: bool,
    quiet: bool,
    max_size: str | None,
    as_json: bool,
    source: str,
    destination: str,
) -> None:
    """Copy a file or a folder into a machine that `start` made, or out of it.

    One of SRC and DST is ID:PATH. A name that has a colon and lies here is written ./a:b. `-` in place of the other is
    a tar on standard input or output. Into a folder that is there SRC goes under its own name; of SRC/. its content.
    """
    src, dst = _read_end(source, "source"), _read_end(destination, "destination")
    limit = MOST_COPIED if max_size is None else parse_size_mib(max_size, field="max-size") * MIB
    manner = _Manner(archive=archive, follow_link=follow_link, max_bytes=limit)
    there = _check_ends(src, dst, as_json=as_json)

    async def work() -> Copied:
        async with VM.connect(there.vm_id) as vm:
            with shown_later(quiet=quiet) as progress:
                if isinstance(src, _There):
                    assert isinstance(dst, _Here)
                    return await _take_out(vm, src, dst, manner, progress)
                return await _bring_in(vm, src, there, manner, progress)

    copied = run_async(work())
    if as_json:
        show_json({"source": source, "destination": destination, **asdict(copied)})
    elif copied.skipped and not quiet:
        told = ", ".join(copied.skipped[:_MOST_TOLD]) + (", ..." if len(copied.skipped) > _MOST_TOLD else "")
        click.echo(f"left out, as devices, pipes, sockets and mounts are: {printable(told)}", err=True)


def _read_end(text: str, field: str) -> _End:
    """`ID:PATH` is in a machine, unless what stands before the colon has the look of a path."""
    vm_id, colon, path = text.partition(":")
    if not text:
        raise ConfigError(field, text, "it is empty", hint="give a path, or ID:PATH")
    if not colon or text.startswith((".", "/")):
        return _Here(text)
    if not vm_id or not path:
        hint = "write ID:/path; a file here whose name has a colon is written ./a:b"
        raise ConfigError(field, text, f"{text!r} is not ID:PATH", hint=hint)
    return _There(vm_id, os.path.join("/", path))


def _check_ends(src: _End, dst: _End, *, as_json: bool) -> _There:
    """The one that is in a machine. Raises `ConfigError` for two that nothing can be copied between."""
    if isinstance(src, _There) and isinstance(dst, _There):
        hint = "copy it here first, or through a pipe: vmfork cp A:/x - | vmfork cp - B:/"
        raise ConfigError("destination", dst.path, "nothing is copied from one machine to another", hint=hint)
    if isinstance(dst, _There):
        assert isinstance(src, _Here)
        if src.is_tar and sys.stdin.isatty():
            raise ConfigError(
                "source", "-", "standard input is a terminal", hint="give a tar: tar c x | vmfork cp - ID:/"
            )
        return dst
    if isinstance(src, _Here):
        raise ConfigError(
            "source", src.path, "neither SRC nor DST is in a machine", hint="write one of them as ID:PATH"
        )
    if dst.is_tar and as_json:
        raise ConfigError("destination", "-", "the tar goes where --json would", hint="leave out one of the two")
    if dst.is_tar and sys.stdout.isatty():
        raise ConfigError("destination", "-", "standard output is a terminal", hint="vmfork cp ID:/x - > x.tar")
    return src


def _means_content(path: str) -> bool:
    """docker's `SRC/.`: what is in the folder, not the folder."""
    return path == "." or path.endswith("/.")


async def _bring_in(vm: VM, src: _End, dst: _There, manner: _Manner, progress: ProgressListener) -> Copied:
    assert isinstance(src, _Here)
    path = dst.path
    if src.is_tar:
        return await vm.put_tar(0, path, archive=manner.archive, progress=progress)
    if _is_folder(src, manner):
        if not _means_content(src.path) and await vm.is_dir(path):
            path = os.path.join(path, base_name(src.path))
        elif not await vm.is_dir(path) and await vm.exists(path):
            raise _onto_file(f"{dst.vm_id}:{path}")
    follows = _follows(src.path, manner)
    return await vm.put(src.path, path, archive=manner.archive, follow_link=follows, progress=progress)


async def _take_out(vm: VM, src: _There, dst: _Here, manner: _Manner, progress: ProgressListener) -> Copied:
    path = src.path
    if dst.is_tar:
        return await vm.get_tar(path, 1, archive=manner.archive, max_bytes=manner.max_bytes, progress=progress)
    follows = _follows(path, manner)
    is_folder = await vm.is_dir(path) and (follows or (await vm.stat(path)).type == "dir")
    goal = _place_folder(path, dst.path) if is_folder else dst.path
    return await vm.get(
        path, goal, archive=manner.archive, follow_link=follows, max_bytes=manner.max_bytes, progress=progress
    )


def _place_folder(path: str, goal: str) -> str:
    """Where the guest's folder goes on the host: into a folder that is there."""
    if os.path.isdir(goal):
        return goal if _means_content(path) else os.path.join(goal, name_of(path))
    if os.path.lexists(goal):
        raise _onto_file(goal)
    return goal


def _is_folder(src: _Here, manner: _Manner) -> bool:
    return os.path.isdir(src.path) and (_follows(src.path, manner) or not os.path.islink(src.path))


def _follows(path: str, manner: _Manner) -> bool:
    """A slash at the end says what the link leads to."""
    return manner.follow_link or path.endswith("/") or _means_content(path)


def _onto_file(place: str) -> ConfigError:
    return ConfigError("destination", place, f"{place!r} is a file, and a folder is copied", hint="name a folder")

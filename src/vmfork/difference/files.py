"""The files of two guests: what one has alone, and what differs, without reading what cannot."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vmfork.errors import ExecError, GuestFileError
from vmfork.machine.programs import run_program
from vmfork.wire.command import Command

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmfork.machine.running import Running
    from vmfork.wire.message import DirEntry

Where = Literal["ours", "theirs", "both"]
Aspect = Literal["type", "mode", "owner", "content", "unread"]

# File systems that hold files of their own; the others show what the kernel knows.
_HOLD_FILES = frozenset({"tmpfs", "ramfs", "overlay", "ext4", "ext3", "ext2", "xfs", "btrfs", "vfat", "iso9660"})
# Where vmfork writes who a machine is: no two have the same.
_IDENTITY = ("/run/vmfork/", "/etc/hostname", "/etc/machine-id", "/etc/hosts")
# Paths are arguments of a program, which may have 2 MiB of them; each also costs a pointer there (execve(2)).
_PATHS_A_PROGRAM, _BYTES_A_PROGRAM = 1000, 128 * 1024
_MOST_TOLD = 64 * 1024 * 1024
_MOST_MOUNTS = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDifference:
    """One path at which two guests differ.

    `where` it is: in the first alone (`ours`), in the other alone (`theirs`), or in both, and then what differs is in
    `aspects`. `unread` is a file of which nobody could tell whether its content differs: it has the same size in both,
    it was written since, and the guest has no `sha256sum` that could say more.
    """

    path: str
    where: Where
    aspects: tuple[Aspect, ...] = ()


@dataclass(frozen=True, slots=True)
class _Stamp:
    """What changes with every change of a file, and cannot be set: its number, and when it was changed (`ctime`)."""

    inode: str
    changed: str
    owner: tuple[str, str]


async def compare_files(ours: Running, theirs: Running) -> list[FileDifference]:
    """Where the files of both differ, by path. Who a machine is, which vmfork writes, is left out.

    A file that both have with the same number and time of change (`ctime`) is the one that their common ancestor had.
    Of others of the same size each guest makes a digest. Raises what the agent raises.
    """
    mine, other = await asyncio.gather(_list_files(ours), _list_files(theirs))
    common = sorted(mine.keys() & other.keys())
    stamps, their_stamps = await asyncio.gather(_read_stamps(ours, common), _read_stamps(theirs, common))
    doubtful = [
        path
        for path in common
        if _may_differ(mine[path], other[path]) and not _is_untouched(stamps.get(path), their_stamps.get(path))
    ]
    digests, their_digests = await asyncio.gather(_read_digests(ours, doubtful), _read_digests(theirs, doubtful))
    found = [FileDifference(path=path, where="ours") for path in mine.keys() - other.keys()]
    found += [FileDifference(path=path, where="theirs") for path in other.keys() - mine.keys()]
    doubt = frozenset(doubtful)
    for path in common:
        aspects = _find_aspects(mine[path], other[path], stamps.get(path), their_stamps.get(path))
        if path in doubt and (aspect := _judge(digests.get(path), their_digests.get(path))):
            aspects.append(aspect)
        if aspects:
            found.append(FileDifference(path=path, where="both", aspects=tuple(aspects)))
    return sorted(found, key=lambda each: each.path)


async def _list_files(running: Running) -> Mapping[str, DirEntry]:
    agent = running.agent
    found: dict[str, DirEntry] = {}
    mounts = (await agent.read_file("/proc/mounts", max_bytes=_MOST_MOUNTS)).decode(errors="surrogateescape")
    for root in find_roots(mounts):
        try:
            entries = await agent.list_tree(root, timeout_s=None)
        except GuestFileError:
            continue  # it is no folder, or gone by now
        base = root.rstrip("/")
        found.update((f"{base}/{entry.name}", entry) for entry in entries)
    return {path: entry for path, entry in found.items() if not path.startswith(_IDENTITY)}


def find_roots(mounts: str) -> list[str]:
    """Where file systems that hold files are mounted, of what /proc/mounts says (proc(5)), the last one at each."""
    kinds: dict[str, str] = {}
    for line in mounts.splitlines():
        _, place, kind, *_ = [*line.split(), "", "", ""]
        for code, sign in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
            place = place.replace(code, sign)
        if place.startswith("/"):
            kinds[place] = kind
    return sorted({"/", *(place for place, kind in kinds.items() if kind in _HOLD_FILES)})


def _may_differ(mine: DirEntry, other: DirEntry) -> bool:
    return mine.type == other.type == "file" and mine.size == other.size > 0


def _is_untouched(mine: _Stamp | None, other: _Stamp | None) -> bool:
    return mine is not None and other is not None and (mine.inode, mine.changed) == (other.inode, other.changed)


def _find_aspects(mine: DirEntry, other: DirEntry, stamp: _Stamp | None, their_stamp: _Stamp | None) -> list[Aspect]:
    if mine.type != other.type:
        return ["type"]
    found: list[Aspect] = []
    if mine.mode != other.mode:
        found.append("mode")
    if stamp is not None and their_stamp is not None and stamp.owner != their_stamp.owner:
        found.append("owner")
    if mine.type in ("file", "link") and mine.size != other.size:
        found.append("content")
    return found


def _judge(mine: str | None, other: str | None) -> Aspect | None:
    if mine is None or other is None:
        return "unread"
    return "content" if mine != other else None


def _portions(paths: Sequence[str]) -> list[list[str]]:
    portions: list[list[str]] = [[]]
    size = 0
    for path in paths:
        size += len(path) + 9
        if len(portions[-1]) == _PATHS_A_PROGRAM or size > _BYTES_A_PROGRAM:
            portions.append([])
            size = len(path) + 9
        portions[-1].append(path)
    return [portion for portion in portions if portion]


async def _run(running: Running, argv: Sequence[str]) -> str:
    """What the program wrote; nothing where the guest has none, or not such a one."""
    try:
        done = await run_program(running, Command([*argv], clean_env=True), max_output=_MOST_TOLD)
    except ExecError:
        return ""
    return done.stdout_bytes.decode(errors="surrogateescape")


async def _read_stamps(running: Running, paths: Sequence[str]) -> Mapping[str, _Stamp]:
    """That of each path of which the guest can tell it."""
    found: dict[str, _Stamp] = {}
    for portion in _portions(paths):
        said = await _run(running, ["stat", "--printf", "%i %.9Z %u %g %n\\0", "--", *portion])
        for line in said.split("\0"):
            inode, changed, user, group, path = [*line.split(" ", 4), "", "", "", "", ""][:5]
            if path:
                found[path] = _Stamp(inode, changed, (user, group))
    return found


async def _read_digests(running: Running, paths: Sequence[str]) -> Mapping[str, str]:
    """That of each file that the guest can read, and has a program for."""
    found: dict[str, str] = {}
    for portion in _portions(paths):
        said = await _run(running, ["sha256sum", "-z", "--", *portion])
        for line in said.split("\0"):
            digest, _, path = line.partition(" ")
            if path:
                found[path[1:]] = digest  # a space or a star stands before it
    return found

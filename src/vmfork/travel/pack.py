"""From a template that is opened to the layers of its artifact."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from vmfork.errors import TemplateCorrupt
from vmfork.store.ram_file import digest_open_ram, find_extents, read_pages
from vmfork.travel.artifact import (
    DISK_TYPE,
    FORMAT,
    MEMORY_TYPE,
    STATE_TYPE,
    WITHOUT_DISKS,
    Artifact,
    list_disks,
    list_spans,
    span_of,
)
from vmfork.travel.document import make_layer
from vmfork.travel.files import send_file
from vmfork.travel.lanes import count_lanes, in_order
from vmfork.travel.pages import Piece, encode, largest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from threading import Event

    from vmfork.image import DiskStore
    from vmfork.store import Manifest, OpenTemplate
    from vmfork.travel.document import Layer, Sink
    from vmfork.travel.files import SentFile

# So much is looked at at once, with what is there already beside the layer itself.
_STEP = 1 << 20


@dataclass(frozen=True, slots=True)
class Base:
    """A template whose layers are where others go: those layers, and its RAM here."""

    layers: tuple[Layer, ...]
    memory_fd: int


@dataclass(frozen=True, slots=True)
class _Packed:
    """A layer of that kind, and its content as it travels where nobody sent it yet."""

    kind: str
    layer: Layer
    left: bytes | None


def pack(
    opened: OpenTemplate,
    sink: Sink,
    *,
    stop: Event,
    tell: Callable[[float], None],
    tsc_khz: int,
    base: Base | None = None,
    disks: DiskStore | None = None,
) -> Artifact | None:
    """The template's layers are in `sink`. `None` when `stop` was set before. `tell` is given the part that is done.

    With a `base` they lie over the layers of that, which must be there, and have what differs from it. What its
    machines read of `disks` is in layers too, where those are given. Raises `TemplateCorrupt` when its RAM, or a disk,
    is not what was frozen, and `ImageCorrupt` when the latter is missing.
    """
    m, spans = opened.manifest, list_spans(opened.manifest.memory_bytes)
    there = -1 if base is None else base.memory_fd
    # What records are written to is used again: memory that was given back has to be cleared when it is asked for.
    spare: SimpleQueue[bytearray] = SimpleQueue()

    def compare() -> None:
        if digest_open_ram(opened.memory_fd).sha256 != m.memory_sha256:
            raise TemplateCorrupt(m.name, "memory", "its content is not what was frozen")

    def send_memory(span: tuple[int, int]) -> _Packed | None:
        """`None` where nothing in that part of RAM differs."""
        try:
            buffer = spare.get_nowait()
        except Empty:
            buffer = bytearray(largest(span_of(m.memory_bytes)))
        layer, data = make_layer(encode(_list_pieces(opened.memory_fd, there, *span), buffer))
        spare.put(buffer)
        return deliver(MEMORY_TYPE, layer, data) if layer.raw_bytes else None

    def send_state() -> _Packed:
        return deliver(STATE_TYPE, *make_layer(os.pread(opened.state_fd, m.state_bytes, 0)))

    def deliver(kind: str, layer: Layer, data: bytes) -> _Packed:
        if not sink.takes_several:
            return _Packed(kind, layer, data)
        sink.put(layer.describe(kind), data)
        return _Packed(kind, layer, None)

    jobs: tuple[Callable[[], _Packed | None], ...]
    jobs = (compare, *(partial(send_memory, span) for span in spans), send_state)
    layers: dict[str, list[Layer]] = {MEMORY_TYPE: [] if base is None else [*base.layers], STATE_TYPE: []}
    # One more where lanes wait for a sink.
    lanes = count_lanes() + 1 if sink.takes_several else count_lanes()
    for number, packed in enumerate(in_order(_call, jobs, stop=stop, lanes=lanes)):
        tell(number / len(jobs))
        if packed is not None:
            layers[packed.kind].append(packed.layer)
            if packed.left is not None:
                sink.put(packed.layer.describe(packed.kind), packed.left)
    if stop.is_set():
        return None
    sent = [] if disks is None else _send_disks(m, disks, sink, stop=stop, tell=tell)
    if stop.is_set():
        return None
    return Artifact(
        manifest=m,
        memory=tuple(layers[MEMORY_TYPE]),
        state=layers[STATE_TYPE][0],
        disks=tuple(sent),
        tsc_khz=tsc_khz,
        format=FORMAT if sent else WITHOUT_DISKS,
    )


def _send_disks(
    m: Manifest, disks: DiskStore, sink: Sink, *, stop: Event, tell: Callable[[float], None]
) -> list[SentFile]:
    """What `m` needs of `disks` is in `sink`, unless `stop` was set."""
    files = []
    for name, sha256 in list_disks(m):
        with disks.opened(sha256, image=m.image) as fd:
            total, done = os.fstat(fd).st_size, 0

            def told(size_bytes: int, total: int = total) -> None:
                nonlocal done
                done += size_bytes
                tell(done / total)

            try:
                file = send_file(fd, name, sha256, sink, DISK_TYPE, stop=stop, told=told)
            except ValueError as error:
                raise TemplateCorrupt(m.name, "disk", str(error)) from error
        if file is None:
            break
        files.append(file)
    return files


def _call(job: Callable[[], _Packed | None]) -> _Packed | None:
    return job()


def _list_pieces(fd: int, there: int, begin: int, end: int) -> Iterator[Piece]:
    """What a part of RAM has beside what the file `there` has, if that is open. Holes of both are left out."""
    for position in sorted(_find_steps(fd, begin, end) | _find_steps(there, begin, end)):
        size = min(_STEP, end - position)
        fill = partial(_fill, fd, position)
        yield Piece(position, size, fill, None if there < 0 else os.pread(there, size, position))


def _fill(fd: int, position: int, view: memoryview) -> None:
    read_pages(fd, [view], position)


def _find_steps(fd: int, begin: int, end: int) -> set[int]:
    if fd < 0:
        return set()
    extents = find_extents(fd, begin, end)
    return {at for start, stop in extents for at in range(begin + (start - begin) // _STEP * _STEP, stop, _STEP)}

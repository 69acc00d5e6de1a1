"""Which files of the host a QEMU reads when it starts: itself, its libraries, its modules and its firmware."""

from __future__ import annotations

import hashlib
import os
import re
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vmfork.errors import HostError
from vmfork.host.folders import make_private, write_whole
from vmfork.hypervisor.qemu.binary import ask, stamp_of
from vmfork.records import VERSION, read_record, write_record

if TYPE_CHECKING:
    from vmfork.hypervisor.qemu.binary import QemuBinary

# elf(5), 64 bits: where the program headers are, the size of each, how many.
_ELF = struct.Struct("<32xQ14xHH")
_INTERPRETER = struct.pack("<I", 3)
# ldconfig writes it whenever libraries were installed or replaced.
_CACHE = Path("/etc/ld.so.cache")
# ld.so(8): "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f...)", and the loader itself without an arrow.
_LIBRARY = re.compile(r"(?:=> |^\s*)(/\S+) \(0x", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Reads:
    """Absolute paths, files and folders. Empty for a script, which starts who knows what, and for a static program.

    `format` is raised when `_find` finds others than before: a QEMU that an older vmfork kept too little of would not
    start.
    """

    paths: tuple[str, ...] = ()
    format: int = field(default=1, metadata=VERSION)


_found: dict[str, Reads] = {}


async def find_reads(binary: QemuBinary, *, kept: Path) -> Reads:
    """What `binary` reads. The answer is kept in the folder `kept` until it, or the host's libraries, are replaced.

    Finding it takes about 50 ms, once. Raises `HostError` when it does not run. What is not there reads nothing.
    """
    if not _is_there(binary.path):
        return Reads()
    key = repr((str(binary.path), binary.stamp, _stamp_of_libraries()))
    if key not in _found:
        path = kept / f"reads-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
        known = _read(path)
        if known is None:
            known = await _find(binary.path)
            with suppress(OSError, HostError):  # found again next time
                make_private(kept)
                write_whole(path, write_record(known))
        _found[key] = known
    return _found[key]


def _is_there(path: Path) -> bool:
    return path.exists()


def _stamp_of_libraries() -> str:
    try:
        return stamp_of(_CACHE)
    except OSError:
        return ""


def _read(path: Path) -> Reads | None:
    try:
        return read_record(Reads, path.read_bytes())
    except (OSError, ValueError):
        return None


async def _find(program: Path) -> Reads:
    if not loads_libraries(program):
        return Reads()
    # The loader prints what it would load, and runs nothing (ld.so(8)).
    libraries = _LIBRARY.findall(await ask(program, env={"LD_TRACE_LOADED_OBJECTS": "1"}))
    firmware = (await ask(program, "-L", "help")).split()
    # Where distributions put a QEMU's modules, TCG among them: in a folder beside its libraries.
    modules = sorted({os.path.join(os.path.dirname(library), "qemu") for library in libraries})
    # A library is looked for under the name that the loader prints; folders under those they have without links.
    folders = [found for path in (*modules, *firmware) if os.path.isabs(path) and (found := _find_folder(path))]
    return Reads(tuple(dict.fromkeys([str(program), *libraries, *folders, *_find_caches()])))


def _find_folder(path: str) -> str:
    """Where the folder really is; empty when there is none."""
    return os.path.realpath(path) if os.path.isdir(path) else ""


def _find_caches() -> list[str]:
    return [str(_CACHE)] if _CACHE.exists() else []


def loads_libraries(path: Path) -> bool:
    """Whether it is a program that names a loader (elf(5): PT_INTERP), and neither a script nor a static one."""
    with path.open("rb") as file:
        head = file.read(_ELF.size)
        if len(head) < _ELF.size or not head.startswith(b"\x7fELF\x02"):
            return False
        position, size, count = _ELF.unpack(head)
        file.seek(position)
        table = file.read(size * count)
    return any(table[start : start + 4] == _INTERPRETER for start in range(0, len(table), size))

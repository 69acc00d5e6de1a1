"""Kernel modules: which ones go along, in what order they load. Read from the modules themselves.

Debian's package has no `modules.dep`, which a maintainer script would make; each module names what it needs in its
`.modinfo` section (kernel: scripts/mod/modpost.c).
"""

from __future__ import annotations

import lzma
import re
from typing import TYPE_CHECKING

from vmfork.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")
_SUFFIX = re.compile(r"\.ko(?:\.xz)?$")


def name_of(path: str) -> str:
    """The module's name: the kernel writes `_` where file names have `-`."""
    return _SUFFIX.sub("", path.rpartition("/")[2]).replace("-", "_")


def index_modules(paths: Iterable[str]) -> dict[str, str]:
    """Names -> paths, of those that are modules."""
    return {name_of(path): path for path in paths if _SUFFIX.search(path)}


def unpack_module(path: str, data: bytes) -> bytes:
    """The module as the kernel takes it, and without the signature's cost of decompression in the guest."""
    return lzma.decompress(data) if path.endswith(".xz") else data


def list_depends(module: bytes) -> list[str]:
    """The names of the modules that must be loaded before this one."""
    found = _DEPENDS.search(module)
    return [name.replace("-", "_") for name in found[1].decode().split(",") if name] if found else []


def select_modules(
    wanted: Iterable[str], index: Mapping[str, str], read: Callable[[str], bytes]
) -> tuple[dict[str, bytes], dict[str, list[str]]]:
    """What to carry, by name and unpacked, and what each needs; dependencies come before those who need them.

    A wanted module that is not in `index` is built into the kernel and is passed over.
    """
    bodies: dict[str, bytes] = {}
    needs: dict[str, list[str]] = {}

    def take(name: str) -> None:
        if name in bodies or name not in index:
            return
        body = unpack_module(index[name], read(index[name]))
        needs[name] = list_depends(body)
        for need in needs[name]:
            if need not in index:
                raise ImageError(f"the kernel module {name} needs {need}, which the kernel package has not")
            take(need)
        bodies[name] = body

    for name in wanted:
        take(name.replace("-", "_"))
    return bodies, needs


def order_modules(wanted: Iterable[str], needs: Mapping[str, list[str]]) -> list[str]:
    """The wanted modules and all they need, in the order in which they can be loaded."""
    order: dict[str, None] = {}

    def take(name: str) -> None:
        for need in needs[name]:
            take(need)
        order.setdefault(name)

    for name in wanted:
        if (known := name.replace("-", "_")) in needs:
            take(known)
    return list(order)

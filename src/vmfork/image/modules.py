"""Kernel modules: which ones go along, in what order they load, how modprobe(8) finds them.

All is read from the modules themselves: each tells in its `.modinfo` section what it needs and what it is called by
(kernel: scripts/mod/modpost.c).
"""

from __future__ import annotations

import lzma
import re
from typing import TYPE_CHECKING

from vmfork.errors import ImageError
from vmfork.image.depmod import encode_index

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from collections.abc import Set as AbstractSet

_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")
_ALIAS = re.compile(rb"\0alias=([^\0]*)(?=\0)")
_BUILTIN_ALIAS = re.compile(rb"([^\0.]+)\.alias=([^\0]*)\0")
_OUTSIDE_BRACKETS = re.compile(r"(\[[^]]*\])")
_SUFFIX = re.compile(r"\.ko(?:\.xz)?$")


def name_of(path: str) -> str:
    """The module's name: the kernel writes `_` where file names have `-`."""
    return _SUFFIX.sub("", path.rpartition("/")[2]).replace("-", "_")


def index_modules(paths: Iterable[str]) -> dict[str, str]:
    """Names -> paths, of those that are modules."""
    return {name_of(path): path for path in paths if _SUFFIX.search(path)}


def list_built_in(listing: bytes) -> frozenset[str]:
    """The names of the modules that are built into the kernel, of its `modules.builtin`."""
    return frozenset(name_of(line) for line in listing.decode().splitlines())


def unpack_module(path: str, data: bytes) -> bytes:
    """The module uncompressed, as the kernel takes it: the guest has nothing to decompress."""
    return lzma.decompress(data) if path.endswith(".xz") else data


def list_depends(module: bytes) -> list[str]:
    """The names of the modules that must be loaded before this one."""
    found = _DEPENDS.search(module)
    return [name.replace("-", "_") for name in found[1].decode().split(",") if name] if found else []


def select_modules(
    wanted: Iterable[str], index: Mapping[str, str], read: Callable[[str], bytes], built_in: AbstractSet[str]
) -> tuple[dict[str, bytes], dict[str, list[str]]]:
    """What to carry, by name and unpacked, and what each needs; dependencies come before those who need them.

    A wanted module of `built_in` is passed over. Raises `ImageError`, naming one that is neither there nor in `index`.
    """
    bodies: dict[str, bytes] = {}
    needs: dict[str, list[str]] = {}

    def take(name: str) -> None:
        if name in bodies:
            return
        if name not in index:
            if name in built_in:
                return
            raise ImageError(f"the kernel module {name} is missing: it is no file, nor built into the kernel")
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


def index_dependencies(places: Mapping[str, str], needs: Mapping[str, list[str]]) -> dict[str, bytes]:
    """`modules.dep`, as text and as the index that modprobe reads. `places` is in the order of the kernel's list."""
    lines = {name: _name_needs(name, places, needs) for name in places}
    index = encode_index({name: [(number, line)] for number, (name, line) in enumerate(lines.items())})
    return {"modules.dep": "".join(line + "\n" for line in lines.values()).encode(), "modules.dep.bin": index}


def _name_needs(name: str, places: Mapping[str, str], needs: Mapping[str, list[str]]) -> str:
    first, *others = (places[need] for need in reversed(order_modules([name], needs)))
    return " ".join((f"{first}:", *others))


def index_aliases(bodies: Mapping[str, bytes]) -> bytes:
    """`modules.alias.bin`: the names by which the kernel asks for a module. `bodies` is in the order of its list."""
    found: dict[str, list[tuple[int, str]]] = {}
    for number, (name, body) in enumerate(bodies.items()):
        for alias in _ALIAS.findall(body):
            found.setdefault(_normalize(alias.decode()), []).append((number, name))
    return encode_index(found)


def index_builtin(listing: bytes, modinfo: bytes) -> dict[str, bytes]:
    """The indexes of the modules built into the kernel, from its own lists: asking for one of them is no error."""
    names = {name_of(line): [(0, "")] for line in listing.decode().splitlines()}
    aliases: dict[str, list[tuple[int, str]]] = {}
    for module, alias in _BUILTIN_ALIAS.findall(modinfo):
        aliases.setdefault(_normalize(alias.decode()), []).append((0, module.decode()))
    return {"modules.builtin.bin": encode_index(names), "modules.builtin.alias.bin": encode_index(aliases)}


def _normalize(alias: str) -> str:
    return "".join(part if part.startswith("[") else part.replace("-", "_") for part in _OUTSIDE_BRACKETS.split(alias))

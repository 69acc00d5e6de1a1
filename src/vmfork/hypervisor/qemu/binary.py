"""Which QEMU is here, and what its version can do."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmfork.errors import ConfigError, HostError
from vmfork.host.asking import ask_program, read_output
from vmfork.host.environ import bare_environ

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping

# The oldest that vmfork is tested with. It has vmgenid, memory-backend-file and restore without RAM.
MINIMUM = (7, 2)

_VERSION = re.compile(r"QEMU emulator version (\d+)\.(\d+)\.(\d+)([^\n]*)")
_PROBE_LIMIT_S = 20.0
_INSTALL = "install it: apt-get install qemu-system-x86"


@dataclass(frozen=True, slots=True, kw_only=True)
class QemuBinary:
    """One QEMU executable as it was when it was probed.

    `version` is what it prints of itself, with the distribution's mark (`7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)`);
    `stamp` changes when the file is replaced (device, inode, size, modification time). `has_sandbox`: it gives up by
    seccomp what it does not need.
    """

    path: Path
    version: str
    release: tuple[int, int, int]
    stamp: str
    has_sandbox: bool = True

    @property
    def incoming_is_file(self) -> bool:
        """From 8.2 a plain file is given as `file:`; `fd:` is for streams."""
        return self.release >= (8, 2, 0)

    @property
    def opens_ram_readonly(self) -> bool:
        """From 8.2 a private mapping may be made of a file opened read-only (`readonly=on,rom=off`).

        Before, QEMU opens the file for writing even where it maps it privately.
        """
        return self.release >= (8, 2, 0)

    def is_unchanged(self) -> bool:
        """The file is the one that was probed."""
        try:
            return stamp_of(self.path) == self.stamp
        except OSError:
            return False


_probed: dict[tuple[Path, str], QemuBinary] = {}


def stamp_of(path: Path) -> str:
    """What tells this file from another under the same path."""
    info = path.stat()
    return f"{info.st_dev}:{info.st_ino}:{info.st_size}:{info.st_mtime_ns}"


def locate_qemu(configured: str = "") -> Path:
    """The path of the emulator: the configured one, else the first on PATH. Runs nothing."""
    name = configured or f"qemu-system-{os.uname().machine}"
    found = shutil.which(name)
    if found is not None:
        return Path(found).resolve()
    if configured:
        raise ConfigError("vm.qemu", configured, f"no program is at {configured}", hint=_INSTALL)
    raise HostError(f"{name} was not found on PATH", hint=_INSTALL)


async def find_qemu(configured: str = "") -> QemuBinary:
    """The emulator in force, its version known.

    Raises `HostError` when it is missing, older than 7.2, or does not run. Running it takes about 30 ms, once per
    process.
    """
    path = locate_qemu(configured)
    key = (path, stamp_of(path))
    if key not in _probed:
        _probed[key] = _parse(path, await ask(path, "--version"))
    return _probed[key]


async def find_qemu_like(path: str, version: str, stamp: str, *, configured: str = "") -> QemuBinary:
    """The emulator in force. Where it is the very file that was seen before under `path`, it is not run again."""
    located = locate_qemu(configured)
    if str(located) != path or stamp_of(located) != stamp:
        return await find_qemu(configured)
    return _parse(located, f"QEMU emulator version {version}")


async def ask(path: Path, *arguments: str, env: Mapping[str, str] | None = None) -> str:
    """What the emulator prints of itself when it is run with `arguments`, in an environment of its own.

    Raises `HostError` when it does not run, or not to a good end, or not within 20 s.
    """
    what = " ".join([str(path), *arguments])

    async def read(child: asyncio.subprocess.Process) -> str:
        text = await read_output(child)
        if child.returncode:
            raise HostError(f"{what} failed (exit status {child.returncode})", hint=_INSTALL, log=text)
        return text

    environ = {**bare_environ(), **(env or {})}
    try:
        return await ask_program(
            path, *arguments, talk=read, env=environ, limit_s=_PROBE_LIMIT_S, errors_too=True, hint=_INSTALL
        )
    except TimeoutError as error:
        raise HostError(f"{what} did not end within {_PROBE_LIMIT_S:g} s") from error


def _parse(path: Path, text: str) -> QemuBinary:
    match = _VERSION.search(text)
    if match is None:
        raise HostError(f"{path} does not look like QEMU", hint=_INSTALL, log=text)
    release = (int(match[1]), int(match[2]), int(match[3]))
    if release[:2] < MINIMUM:
        raise HostError(
            f"{path} is QEMU {match[1]}.{match[2]}, too old", hint=f"vmfork needs {MINIMUM[0]}.{MINIMUM[1]} or newer"
        )
    version = f"{match[1]}.{match[2]}.{match[3]}{match[4]}".strip()
    return QemuBinary(path=path, version=version, release=release, stamp=stamp_of(path))

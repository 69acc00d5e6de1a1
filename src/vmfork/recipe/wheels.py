"""Python packages for a guest: found and fetched by this host's pip, as it is configured, and installed there.

The guest needs neither pip nor a network. What it needs is told by its own Python: version, platform, C library. pip
decides by markers (`; python_version < "3.13"`) as if for the Python that it runs with itself.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import shutil
import sys
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

from vmfork.errors import ConfigError, DeadlineExceeded, ExecError, HostError
from vmfork.host.packing import Packing
from vmfork.host.tool import find_tool, run_tool
from vmfork.machine.programs import run_program
from vmfork.recipe.pins import wants_package
from vmfork.recipe.requirements import WHEEL, is_file
from vmfork.wire.command import Command

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vmfork.machine.running import Running
    from vmfork.recipe.context import Context
    from vmfork.recipe.step import Pip

_PLACE = "/run/vmfork-wheels"
# The last lines of pip's output, which name what it did not find.
_NO_PACKAGE = re.compile(r"No matching distribution found for (.+)")
# musl says its version where its loader is run alone, and nowhere else.
_ASK = (
    "import glob, json, os, subprocess, sys;"
    "libc = os.confstr('CS_GNU_LIBC_VERSION') if 'CS_GNU_LIBC_VERSION' in os.confstr_names else '';"
    "loaders = [] if libc else sorted(glob.glob('/lib/ld-musl-*.so.1'));"
    "libc = subprocess.run(loaders[:1], stderr=subprocess.PIPE).stderr.decode() if loaders else libc;"
    "print(json.dumps([sys.version_info[:2], os.uname().machine, libc]))"
)
# Images may have another user, who may not write there.
_USER = "root"
_ASK_LIMIT_S = 60.0
# manylinux names an older C library too (PEP 600); the least that there are wheels for.
_OLDEST_GLIBC = 5
_LEGACY = ("manylinux2014", "manylinux2010", "manylinux1")


@dataclass(frozen=True, slots=True)
class GuestPython:
    """What wheels have to fit: version, machine, and the minor version of glibc 2 or of musl 1, whichever it has."""

    major: int
    minor: int
    machine: str
    glibc: int | None
    musl: int | None = None

    def to_options(self) -> list[str]:
        """What tells pip to look for wheels for this Python in the place of its own."""
        version = f"{self.major}{self.minor}"
        options = ["--implementation", "cp", "--python-version", f"{self.major}.{self.minor}", "--abi", f"cp{version}"]
        for platform in self._list_platforms():
            options += ["--platform", f"{platform}_{self.machine}"]
        return options

    def _list_platforms(self) -> list[str]:
        if self.musl is not None:  # PEP 656
            return [*(f"musllinux_1_{minor}" for minor in range(self.musl, -1, -1)), "linux"]
        if self.glibc is None:
            return ["linux"]
        # pip takes each name as it stands: one for glibc 2.41 does not mean those for 2.28.
        return [f"manylinux_2_{minor}" for minor in range(self.glibc, _OLDEST_GLIBC - 1, -1)] + [*_LEGACY, "linux"]


async def ask_python(running: Running) -> GuestPython:
    """What the guest's Python says of itself. Raises `ConfigError` when it has none."""
    try:
        result = await run_program(running, Command(["python3", "-c", _ASK], user=_USER), timeout_s=_ASK_LIMIT_S)
    except ExecError as error:
        hint = 'put {packages = ["python3"]} before it, or take an image that has it'
        raise ConfigError("pip", "python3", "the guest has no python3", hint=hint) from error
    (major, minor), machine, libc = json.loads(result.check().stdout)
    glibc, musl = re.fullmatch(r"glibc 2\.(\d+)", libc), re.search(r"^musl libc\b.*\nVersion 1\.(\d+)", libc)
    return GuestPython(major, minor, machine, int(glibc[1]) if glibc else None, int(musl[1]) if musl else None)


async def fetch_wheels(step: Pip, python: GuestPython, context: Context, folder: Path) -> None:
    """The wheels of what the step wants, and of all that needs, are in the folder.

    Raises `ConfigError` for what does not exist as a wheel for that Python, before pip is run for what it would build,
    `HostError` when there is no pip or it failed otherwise, and `DeadlineExceeded`. No process is left on any path.
    """
    is_needed = wants_package(step, context)
    argv = [
        *find_pip(),
        *("download", "--quiet", "--disable-pip-version-check", "--no-input", "--only-binary=:all:"),
        *python.to_options(),
        *("--dest", str(folder)),
        *_list_wanted(step.wanted, context),
    ]
    exit_code, log = await _run(argv, context.folder, limit_s=step.timeout_s)
    if exit_code == 0:
        _check_fetched(folder, is_needed=is_needed, log=log)
        return
    if found := _NO_PACKAGE.search(log):
        reason = f"no wheel of {found[1]} is for Python {python.major}.{python.minor} on {python.machine}"
        hint = "look at the name and the version; packages that have no wheel cannot be installed so"
        error = ConfigError("pip", found[1], reason, hint=hint)
        error.add_note(log)
        raise error
    raise HostError(f"pip could not fetch the packages (exit status {exit_code})", hint="see its output", log=log)


def find_pip() -> list[str]:
    """The command that runs this user's pip: of the Python that runs us, else of PATH. Raises `HostError`."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    found = shutil.which("pip3")
    return [found or find_tool("pip", "which fetches Python packages", hint="install it: python3-pip")]


async def install_wheels(running: Running, folder: Path, *, timeout_s: float) -> None:
    """The guest's Python has what the wheels in the folder hold. The wheels are gone from the guest, on every path."""
    agent = running.agent
    try:
        await agent.put(Packing(str(folder)), _PLACE, parents=True, timeout_s=timeout_s)
        script = (resources.files("vmfork.recipe") / "python" / "install_wheels.py").read_text()
        command = Command(["python3", "-c", script, _PLACE], user=_USER)
        (await run_program(running, command, timeout_s=timeout_s)).check()
    finally:
        if agent.lost is None:
            await agent.remove(_PLACE, recursive=True, timeout_s=_ASK_LIMIT_S)


def _check_fetched(folder: Path, *, is_needed: bool, log: str) -> None:
    """Raises `ConfigError` when pip left what cannot be installed, or nothing where something is needed."""
    names = sorted(entry.name for entry in folder.iterdir())
    if strange := [name for name in names if not name.endswith(WHEEL)]:
        reason, hint = (
            f"pip fetched {strange[0]}, which is no wheel",
            "see which package needs it; only wheels are taken",
        )
    elif is_needed and not names:
        reason, hint = "pip fetched nothing", "see its output, and its own settings (pip config list)"
    else:
        return
    error = ConfigError("pip", strange[0] if strange else "", reason, hint=hint)
    error.add_note(log)
    raise error


def _list_wanted(wanted: Sequence[str], context: Context) -> list[str]:
    arguments = []
    for each in wanted:
        if not is_file(each):
            arguments.append(each)
        else:
            path = str(context.find(each, field="pip"))
            arguments += [path] if each.endswith(WHEEL) else ["--requirement", path]
    return arguments


async def _run(argv: Sequence[str], folder: Path, *, limit_s: float) -> tuple[int, str]:
    """The program's exit status and the end of what it wrote."""
    log = bytearray()
    try:
        async with asyncio.timeout(limit_s):
            exit_code = await run_tool(argv, folder=folder, log=log)
    except TimeoutError:
        detail = f"pip's output:\n{log.decode(errors='replace')}"
        raise DeadlineExceeded("fetching Python packages", limit_s, detail=detail) from None
    return exit_code, log.decode(errors="replace")

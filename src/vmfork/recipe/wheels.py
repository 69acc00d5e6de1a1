"""Python packages for a guest: found and fetched by this host's pip, as it is configured, and installed there.

The guest needs neither pip nor a network. What it needs is told by its own Python: version, platform, C library, and
what decides markers (`; python_version < "3.13"`), which pip is told in the place of its own (python/run_pip.py).
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from vmfork.errors import ConfigError, DeadlineExceeded, ExecError, HostError
from vmfork.host.packing import Packing
from vmfork.host.tool import find_tool, run_tool
from vmfork.machine.programs import run_program
from vmfork.recipe.pins import wants_package
from vmfork.recipe.requirements import WHEEL, is_file
from vmfork.wire.command import Command

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vmfork.machine.running import Running
    from vmfork.recipe.context import Context
    from vmfork.recipe.step import Pip

_PLACE = "/run/vmfork-wheels"
# The last lines of pip's output, which name what it did not find.
_NO_PACKAGE = re.compile(r"No matching distribution found for (.+)")
# Of a file with `--hash` all that is installed has to have one. The packages stand in the lines below, indented.
_NO_HASH = re.compile(
    r"(?:In --require-hashes mode|Hashes are required in --require-hashes mode).*\n((?:[ \t]+\S.*\n?)+)"
)
# As python/run_pip.py ends where it did not run pip.
_CANNOT_BE_TOLD = 70
_LONGEST_LINE = 4096
_PYTHON = re.compile(r"python[\d.]*")
# Images may have another user, who may not write there.
_USER = "root"
_ASK_LIMIT_S = 60.0
# manylinux names an older C library too (PEP 600); the least that there are wheels for.
_OLDEST_GLIBC = 5
_LEGACY = ("manylinux2014", "manylinux2010", "manylinux1")


@dataclass(frozen=True, slots=True)
class GuestPython:
    """What wheels have to fit: the minor version of glibc 2 or of musl 1, whichever it has, and its environment.

    That has the variables of markers (PEP 508): `python_full_version`, `platform_machine` and the others.
    """

    environment: Mapping[str, str]
    glibc: int | None = None
    musl: int | None = None

    @property
    def version(self) -> str:
        """Major and minor: 3.13."""
        return self.environment["python_version"]

    @property
    def machine(self) -> str:
        """As uname says it: x86_64."""
        return self.environment["platform_machine"]

    def to_options(self) -> list[str]:
        """What tells pip to look for wheels for this Python in the place of its own."""
        release = re.match(r"\d+(\.\d+)*", self.environment["python_full_version"])  # pip: none of "rc1", "+"
        full = release[0] if release else self.version
        abi = f"cp{self.version.replace('.', '')}"
        options = ["--implementation", "cp", "--python-version", full, "--abi", abi]
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
        command = Command(["python3", "-c", _read_script("describe.py")], user=_USER)
        result = await run_program(running, command, timeout_s=_ASK_LIMIT_S)
    except ExecError as error:
        hint = 'put {packages = ["python3"]} before it, or take an image that has it'
        raise ConfigError("pip", "python3", "the guest has no python3", hint=hint) from error
    return read_python(result.check().stdout)


def read_python(said: str) -> GuestPython:
    """What python/describe.py wrote."""
    told = json.loads(said)
    libc = told["libc"]
    glibc, musl = re.fullmatch(r"glibc 2\.(\d+)", libc), re.search(r"^musl libc\b.*\nVersion 1\.(\d+)", libc)
    return GuestPython(told["environment"], int(glibc[1]) if glibc else None, int(musl[1]) if musl else None)


async def fetch_wheels(step: Pip, python: GuestPython, context: Context, folder: Path) -> None:
    """The wheels of what the step wants, and of all that needs, are in the folder; markers are decided for that Python.

    Raises `ConfigError` for what does not exist as a wheel for that Python, for what has no hash where one is asked
    for, and before pip is run for what it would build; `HostError` when there is no pip, it cannot be told of another
    Python, or it failed otherwise; and `DeadlineExceeded`. No process is left on any path.
    """
    is_needed = wants_package(step, context)
    argv = [
        *(pip := find_pip()),
        *("-c", _read_script("run_pip.py"), json.dumps(dict(python.environment))),
        *("download", "--quiet", "--disable-pip-version-check", "--no-input", "--only-binary=:all:"),
        *python.to_options(),
        *("--dest", str(folder)),
        *_list_wanted(step.wanted, context),
    ]
    exit_code, log = await _run(argv, context.folder, limit_s=step.timeout_s)
    if exit_code == 0:
        _check_fetched(folder, is_needed=is_needed, log=log)
        return
    if exit_code == _CANNOT_BE_TOLD:
        reason = f"the pip of {shlex.join(pip)} cannot be told for which Python it is to decide by markers"
        raise HostError(reason, hint="give that Python another version of pip", log=log)
    if error := _find_reason(log, python):
        error.add_note(log)
        raise error
    raise HostError(f"pip could not fetch the packages (exit status {exit_code})", hint="see its output", log=log)


def _find_reason(log: str, python: GuestPython) -> ConfigError | None:
    """What is wrong with what is asked for, where pip says so in its output."""
    if found := _NO_PACKAGE.search(log):
        wanted, _, marker = (part.strip() for part in found[1].partition(";"))
        where = f", where {marker}" if marker else ""
        reason = f"no wheel of {wanted} is for Python {python.version} on {python.machine}{where}"
        hint = "look at the name and the version; packages that have no wheel cannot be installed so"
        return ConfigError("pip", found[1], reason, hint=hint)
    if found := _NO_HASH.search(log):
        lines = [line.strip() for line in found[1].splitlines()]
        lacking = [line.partition(" --hash=")[0].partition(" from ")[0] for line in lines]
        reason = f"no version with a hash is given for {', '.join(lacking)}"
        hint = f"write the file for Python {python.version}, or for all: with hashes it has to have all that is needed"
        return ConfigError("pip", lacking[0], reason, hint=hint)
    return None


def find_pip() -> list[str]:
    """The command of the Python that runs this user's pip: the one that runs us, else that of PATH. Raises `HostError`.

    Of PATH it is the one in the first line of `pip3` or `pip`, else, as with a wrapper in shell, the `python3`
    beside that, or the one on PATH.
    """
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable]
    script = shutil.which("pip3") or find_tool("pip", "which fetches Python packages", hint="install it: python3-pip")
    if command := _read_interpreter(script):
        return command
    beside = shutil.which("python3", path=str(PurePosixPath(script).parent))
    return [beside or find_tool("python3", f"which runs {script}", hint="install it: python3-pip")]


def _read_interpreter(script: str) -> list[str]:
    """The command in its first line, where that runs a Python; else nothing."""
    try:
        with open(script, "rb") as file:
            line = file.readline(_LONGEST_LINE).decode(errors="replace")
        command = shlex.split(line.removeprefix("#!")) if line.startswith("#!") else []
    except (OSError, ValueError):
        return []
    return command if any(_PYTHON.fullmatch(PurePosixPath(word).name) for word in command) else []


def _read_script(name: str) -> str:
    return (resources.files("vmfork.recipe") / "python" / name).read_text()


async def install_wheels(running: Running, folder: Path, *, timeout_s: float) -> None:
    """The guest's Python has what the wheels in the folder hold. The wheels are gone from the guest, on every path."""
    agent = running.agent
    try:
        await agent.put(Packing(str(folder)), _PLACE, parents=True, timeout_s=timeout_s)
        command = Command(["python3", "-c", _read_script("install_wheels.py"), _PLACE], user=_USER)
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

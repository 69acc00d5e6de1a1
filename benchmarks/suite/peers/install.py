"""The peers that the suite does not bring along: where each is, and how it is installed when asked for."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from typing import TYPE_CHECKING

from vmfork.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.suite.context import Context

# Program: the Debian package that has it. Of libvirt, what runs QEMU; no service is started.
DEBIAN = {
    "qemu-img": "qemu-utils",
    "libvirtd": "libvirt-daemon",
    "virsh": "libvirt-clients",
}
_LIBVIRT_DRIVER = "libvirt-daemon-driver-qemu"
QUICKSAND = "quick-sandbox[alpine]==0.13.0"


def find_program(name: str) -> str | None:
    """The path of a program, for daemons too where PATH is an ordinary user's."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin")


def quicksand_python(folder: Path) -> Path:
    """The interpreter of the virtual environment that quicksand is installed in, if it is."""
    return folder / "quicksand" / "bin" / "python"


async def install_peers(context: Context) -> None:
    """Every peer that can be had is installed. One that cannot is reported, and its rows say so too."""
    missing = [package for program, package in DEBIAN.items() if find_program(program) is None]
    if missing:
        packages = [*missing, *([_LIBVIRT_DRIVER] if "libvirt-daemon" in missing else [])]
        await _try(context, f"installing {', '.join(packages)}", _apt(packages))
    python = quicksand_python(context.peers)
    if not (python.parent / "quicksand").exists():
        environment = python.parents[1]
        await _try(
            context,
            "installing quicksand",
            [sys.executable, "-m", "venv", str(environment)],
            [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", QUICKSAND],
        )


def _apt(packages: Sequence[str]) -> Sequence[str]:
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    return [*as_root, "apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]


async def _try(context: Context, step: str, *commands: Sequence[str]) -> None:
    context.report(step)
    try:
        for command in commands:
            await _run(command)
    except (OSError, HostError) as error:
        context.report(f"{step} failed: {error}")


async def _run(command: Sequence[str]) -> None:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
    )
    try:
        output, _ = await process.communicate()
    except asyncio.CancelledError:
        process.terminate()
        await process.wait()
        raise
    if process.returncode:
        raise HostError(output.decode(errors="replace").strip().splitlines()[-1] if output else "it says nothing")

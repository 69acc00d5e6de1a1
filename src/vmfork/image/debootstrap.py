"""Runs mmdebstrap: packages from a Debian archive become one tar file, installed as Debian installs them.

Their own scripts run, in namespaces of their own (docs/decisions/0021). The kernel is fetched by a hook, because by
dependency it would bring an initramfs builder, udev and systemd. The tar holds beside the file system what the hooks
in install/ gathered:

```
.vmfork/installed                      a package a line, with its version
.vmfork/needed                         a package a line: those asked for, and all that they name as dependencies
.vmfork/owners                         mode, uid, gid and path of each file, NUL after each; where the tar cannot know
.vmfork/kernel-package                 the kernel's package and version
.vmfork/kernel/{boot,usr/lib/modules}  and what is in it
```
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from vmfork.errors import HostError, ImageError, VMForkError
from vmfork.host.environ import PATH, bare_environ, proxy_environ
from vmfork.host.session import kill_session
from vmfork.host.tool import find_tool
from vmfork.image import dropped, recipe
from vmfork.image.namespaces import choose_namespaces

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

TOLD = ".vmfork"

# Without libeatmydata, dpkg waits for the disk at each file (docs/decisions/0021).
_TOOLS = {"real": "libeatmydata1", "faked": "libeatmydata1 fakeroot libfakeroot"}

_LOG_LINES = 60
# Killed processes may take this long to be gone: they may sit in a write to a slow disk.
_KILL_LIMIT_S = 10.0

# What a line of the log announces: step in words, fraction of mmdebstrap's work. Shares as measured.
_STEPS = (
    ("running apt-get update", "reading the package lists", 0.0),
    ("downloading packages with apt", "downloading packages", 0.1),
    ("extracting archives", "unpacking packages", 0.15),
    ("installing essential packages", "installing what is essential", 0.25),
    ("installing remaining packages", "installing packages", 0.4),
    ("vmfork: reading package records", "reading package records", 0.75),
    ("vmfork: compiling Python", "compiling Python", 0.76),
    ("vmfork: fetching the kernel", "downloading the kernel", 0.82),
    ("vmfork: unpacking the kernel", "unpacking the kernel", 0.88),
    ("creating tarball", "collecting files", 0.92),
)

_NO_SPACE = re.compile(r"No space left on device|don't have enough free space|Disk quota exceeded")
_NO_PACKAGE = re.compile(
    r"^E: (?:Unable to locate package (\S+)|Package '(\S+)' has no installation candidate"
    r"|Couldn't find any package by (?:glob|regex) '(\S+)'|Can't find a source to download version .* of '(\S+)')",
    re.MULTILINE,
)
_NO_NETWORK = re.compile(
    r"Temporary failure resolving|Could not resolve|Could not connect|Cannot initiate the connection|Connection refused"
    r"|Connection timed out|Network is unreachable|Unable to connect|No route to host|Connection failed"
)
_NO_SUITE = re.compile(r"does not have a Release file|404 +Not Found.*Release")
_CONFLICT = re.compile(r"unmet dependencies|held broken packages|Unable to correct problems")
_BROKEN = re.compile(r"^dpkg: error processing (?:package|archive) (\S+)", re.MULTILINE)
_NO_KEY = re.compile(r"NO_PUBKEY|is not signed|cannot find a signed-by|Missing key")
_NO_FETCH = re.compile(r"E: Failed to fetch|Hash Sum mismatch|Unable to fetch some archives")


def find_mmdebstrap() -> str:
    """The path of mmdebstrap. Raises `HostError` when it is not installed."""
    return find_tool("mmdebstrap", "and images are built with it", hint="install it: apt-get install mmdebstrap")


def build_argv(program: str, suite: str, packages: Sequence[str], tar: Path, *, ids: str) -> list[str]:
    """The command that writes `tar`, to be run in namespaces with such `ids`."""
    return [
        program,
        "--mode=root",
        # A devpts for the group tty cannot be mounted by a root who is no other user; install/unpacked does without.
        *(["--skip=chroot/mount/dev"] if ids == "faked" else []),
        "--variant=essential",
        "--format=tar",
        f"--architectures={recipe.DEBIAN_ARCH}",
        f"--include={','.join(packages)}",
        # Run as root, apt would drop to a user who cannot enter our private folder, warn, and carry on as root.
        '--aptopt=APT::Sandbox::User "root"',
        '--aptopt=Acquire::Languages "none"',
        '--aptopt=Acquire::Retries "2"',
        # Else apt finds /usr/bin/dpkg before the one that is put before it.
        f'--aptopt=DPkg::Path "{PATH}"',
        '--extract-hook=sh "$VMFORK_INSTALL/unpacked" "$1"',
        '--customize-hook=sh "$VMFORK_INSTALL/installed" "$1"',
        suite,
        str(tar),
    ]


def build_environ(packages: Sequence[str], *, ids: str) -> dict[str, str]:
    """What mmdebstrap, apt and the hooks find in their environment. Scripts of packages get less: see install/dpkg.

    Of this process's own environment they get what it was told of proxies, and nothing else.
    """
    return {
        **bare_environ(),
        **proxy_environ(),
        "VMFORK_INSTALL": str(recipe.INSTALL),
        "VMFORK_PACKAGES": " ".join(packages),
        "VMFORK_TOOLS": _TOOLS[ids],
        "VMFORK_IDS": ids,
        "VMFORK_EPOCH": str(recipe.EPOCH),
        "VMFORK_EXCLUDED": " ".join(dropped.UNPACKED),
        "VMFORK_NOT_COMPILED": recipe.NOT_COMPILED,
        "VMFORK_KERNEL": recipe.KERNEL_PACKAGE,
        # tar(1) may unpack as root, for whom no other user exists.
        **({"TAR_OPTIONS": "--no-same-owner"} if ids == "faked" else {}),
    }


async def run_mmdebstrap(
    suite: str, packages: Sequence[str], tar: Path, *, tmp: Path, report: Callable[[str, float], None]
) -> None:
    """`tar` holds the installed packages; `report(step, fraction)` was called on the way.

    `tmp` takes the intermediate files. Raises `ImageError` or `HostError`, with the tail of the log. On every path each
    process that was started here is gone, and the caller removes what lies in `tmp`.
    """
    program = find_mmdebstrap()
    namespaces = await asyncio.to_thread(choose_namespaces)
    # Should we be killed outright, all in the namespaces ends with the first process there. Without namespaces TERM
    # makes mmdebstrap end its children. Files are swept with the folder.
    setpriv = shutil.which("setpriv")
    pdeathsig = "KILL" if namespaces.argv else "TERM"
    process = await asyncio.create_subprocess_exec(
        *([setpriv, "--pdeathsig", pdeathsig, "--"] if setpriv else []),
        *namespaces.argv,
        *build_argv(program, suite, packages, tar, ids=namespaces.ids),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        env={**build_environ(packages, ids=namespaces.ids), "HOME": str(tmp), "TMPDIR": str(tmp)},
    )
    log: deque[str] = deque(maxlen=_LOG_LINES)
    try:
        await _follow(process, log, report)
        exit_code = await process.wait()
    finally:
        # Also when mmdebstrap has ended: if somebody killed it, apt still runs.
        await _kill_session(process)
    if exit_code != 0:
        raise explain_failure("\n".join(log), exit_code, suite=suite, folder=tmp)


async def _follow(process: asyncio.subprocess.Process, log: deque[str], report: Callable[[str, float], None]) -> None:
    assert process.stderr is not None
    async for line in process.stderr:
        text = line.decode(errors="replace").rstrip()
        log.append(text)
        for mark, step, fraction in _STEPS:
            if text.startswith("I: " + mark):
                report(step, fraction)


async def _kill_session(process: asyncio.subprocess.Process) -> None:
    # apt and its methods have other pipes than ours, so its end says nothing of them: each is waited for, lest one of
    # them writes on into the folder that is being removed.
    assert process.stderr is not None
    with suppress(TimeoutError):
        async with asyncio.timeout(_KILL_LIMIT_S):
            await kill_session(process.pid)
            await process.stderr.read()
    await process.wait()


def explain_full_disk(folder: Path, log: str = "") -> HostError:
    """The error that names the file system `folder` lies in."""
    folder = folder.absolute()
    mount = next(path for path in (folder, *folder.parents) if path.is_mount())
    return HostError(
        f"no space is left on the disk at {mount}, where the image is built",
        hint="free some, or set VMFORK_HOME to a larger disk",
        log=log,
    )


def explain_failure(log: str, exit_code: int, *, suite: str, folder: Path) -> VMForkError:
    """The error for a failed run in `folder`, told by the messages of mmdebstrap 1.3 and apt 2.6 to 3.0."""
    if _NO_SPACE.search(log):
        return explain_full_disk(folder, log)
    missing = sorted({next(filter(None, found.groups())) for found in _NO_PACKAGE.finditer(log)})
    if missing:
        names = ", ".join(missing)
        return ImageError(
            f"Debian {suite} has no package named {names}",
            hint="look at the spelling (image.packages), or whether the package exists in that release",
            log=log,
        )
    if broken := _BROKEN.search(log):
        return ImageError(
            f"the package {broken[1]} could not be installed",
            hint="the log has what its script said; no service can be started there",
            log=log,
        )
    for pattern, message, hint in (
        (
            _NO_NETWORK,
            "the Debian archive cannot be reached",
            "check the network, the name service and http_proxy, then try again",
        ),
        (_NO_SUITE, f"Debian has no release named {suite!r}", "use a release name such as trixie (image.suite)"),
        (_CONFLICT, "the packages cannot be installed together", "the log names the conflict (image.packages)"),
        (_NO_KEY, "the Debian archive's signature cannot be checked", "apt-get install debian-archive-keyring"),
        (_NO_FETCH, "the Debian archive did not deliver a file", "try again in a few minutes"),
    ):
        if pattern.search(log):
            return ImageError(message, hint=hint, log=log)
    return ImageError(f"mmdebstrap failed (exit status {exit_code})", hint="see its log below", log=log)

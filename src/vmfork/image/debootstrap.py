"""Runs mmdebstrap: packages from a Debian archive become one tar file, without privileges and without their scripts.

`--mode=chrootless --variant=extract` only unpacks, so it works for every user and nothing of the packages runs. The
kernel is fetched by a hook, because by dependency it would bring an initramfs builder, udev and systemd. The tar holds
beside the file system what the hook gathered:

```
.vmfork/control/N/{control,postinst,...}     what each package says of itself
.vmfork/kernel/{boot,usr/lib/modules}        the kernel package, unpacked
```
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from vmfork.errors import HostError, ImageError, VMForkError
from vmfork.host.session import kill_session
from vmfork.image.recipe import DEBIAN_ARCH, KERNEL_PACKAGE, MULTIARCH, NOT_COMPILED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

CONTROL = ".vmfork/control"
KERNEL = ".vmfork/kernel"

_LOG_LINES = 60
# How long killed processes may take to be gone: they may sit in a write to a slow disk.
_KILL_LIMIT_S = 10.0

# Runs when the packages are unpacked and their files still lie in apt's cache.
_HOOK = f"""set -eu
root=$1
echo "I: vmfork: reading package records" >&2
mkdir -p "$root/{CONTROL}" "$root/{KERNEL}"
cd "$root/var/cache/apt/archives"
ls | grep '[.]deb$' | xargs -P 4 -I @ dpkg-deb --control @ "$root/{CONTROL}/@"
echo "I: vmfork: compiling Python" >&2
lib="$root/usr/lib/{MULTIARCH}"
for python in "$root"/usr/bin/python3.[0-9]*; do
    test -x "$python" || continue
    env -i PYTHONHOME="$root/usr" "$lib"/ld-linux-*.so.? --library-path "$lib" "$python" \\
        -B -S -s -m compileall -q -s "$root" -p / --invalidation-mode unchecked-hash -x '{NOT_COMPILED}' \\
        "$root/usr/lib/${{python##*/}}" >&2 || true
done
echo "I: vmfork: fetching the kernel" >&2
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
kernel=$(apt-cache depends {KERNEL_PACKAGE} | sed -n 's/^ *Depends: \\(linux-image-[0-9].*\\)$/\\1/p' | head -n 1)
test -n "$kernel" || {{ echo "E: Unable to locate package {KERNEL_PACKAGE}" >&2; exit 1; }}
cd "$root/{KERNEL}"
apt-get --quiet --quiet download "$kernel" >&2
echo "I: vmfork: unpacking the kernel" >&2
dpkg-deb --control *.deb "$root/{CONTROL}/kernel"
dpkg-deb --extract *.deb .
rm *.deb
"""

# What a line of the log announces: step in words, fraction of mmdebstrap's work. Shares as measured.
_STEPS = (
    ("running apt-get update", "reading the package lists", 0.0),
    ("downloading packages with apt", "downloading packages", 0.3),
    ("extracting archives", "unpacking packages", 0.45),
    ("vmfork: reading package records", "reading package records", 0.65),
    ("vmfork: compiling Python", "compiling Python", 0.66),
    ("vmfork: fetching the kernel", "downloading the kernel", 0.7),
    ("vmfork: unpacking the kernel", "unpacking the kernel", 0.8),
    ("creating tarball", "collecting files", 0.9),
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
_NO_KEY = re.compile(r"NO_PUBKEY|is not signed|cannot find a signed-by|Missing key")
_NO_FETCH = re.compile(r"E: Failed to fetch|Hash Sum mismatch|Unable to fetch some archives")


def find_mmdebstrap() -> str:
    """The path of mmdebstrap; `HostError` when it is not installed."""
    path = shutil.which("mmdebstrap")
    if path is None:
        raise HostError(
            "the program mmdebstrap was not found, and images are built with it",
            hint="install it: apt-get install mmdebstrap",
        )
    return path


def build_argv(program: str, suite: str, packages: Sequence[str], tar: Path, *, hook: Path) -> list[str]:
    """The command that writes `tar`; `hook` is the file with the hook."""
    return [
        program,
        "--mode=chrootless",
        # From 1.4.1 root is refused this mode outside a chroot, for what scripts of packages might do: none run here.
        "--skip=check/chrootless",
        "--variant=extract",
        "--format=tar",
        f"--architectures={DEBIAN_ARCH}",
        f"--include={','.join(packages)}",
        # Run as root, apt would drop to a user who cannot enter our private folder, warn, and carry on as root.
        '--aptopt=APT::Sandbox::User "root"',
        '--aptopt=Acquire::Languages "none"',
        '--aptopt=Acquire::Retries "2"',
        # By its path: mmdebstrap quotes the command of a hook that failed, and the log's end would be the whole script.
        f'--extract-hook=sh {shlex.quote(str(hook))} "$1"',
        suite,
        str(tar),
    ]


async def run_mmdebstrap(
    suite: str, packages: Sequence[str], tar: Path, *, tmp: Path, report: Callable[[str, float], None]
) -> None:
    """`tar` holds the unpacked packages; `report(step, fraction)` was called on the way.

    `tmp` takes the intermediate files. On failure `ImageError` or `HostError` with the tail of the log; on any way out
    every process started here is gone, and what lies in `tmp` is the caller's to remove.
    """
    hook = tmp / "hook"
    hook.write_text(_HOOK)
    argv = build_argv(find_mmdebstrap(), suite, packages, tar, hook=hook)
    # Should we be killed outright, TERM makes mmdebstrap end its children; its files are swept with the folder.
    setpriv = shutil.which("setpriv")
    process = await asyncio.create_subprocess_exec(
        *([setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []),
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(tmp), "LC_ALL": "C.UTF-8"},
    )
    log: deque[str] = deque(maxlen=_LOG_LINES)
    try:
        await _follow(process, log, report)
        exit_code = await process.wait()
    finally:
        # Also where mmdebstrap has ended: killed from outside, it leaves apt running.
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

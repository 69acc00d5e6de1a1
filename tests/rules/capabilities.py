"""What a test needs of its host: one table, one mark, and a switch that turns a skip into a failure.

```
@pytest.mark.needs("root", "lz4")       the test is skipped, by name, where the host has not both
need("memory-cgroup", found=False)      the same, for what only shows when it is tried
pytest --guaranteed root,qemu           where one of these is missing, the test fails
```
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vmfork.host.kvm import find_refusal

if TYPE_CHECKING:
    from collections.abc import Callable


def _always() -> bool:
    """For what only shows when it is tried."""
    return True


UNPACKED = Path(sys.prefix) / "unpacked"


def find_program(name: str) -> str | None:
    """Where it is: installed, or unpacked by `tools/setup` beside the tests' Python."""
    places = [os.environ.get("PATH", os.defpath), f"{UNPACKED}/usr/bin", f"{UNPACKED}/bin"]
    return shutil.which(name, path=":".join(places))


def find_musl() -> Path | None:
    """musl's C library, which is its loader too; below /usr where Debian has all there."""
    found = (UNPACKED / place / "x86_64-linux-musl" / "libc.so" for place in ("lib", "usr/lib"))
    return next((path for path in found if path.exists()), None)


def find_glibc() -> tuple[Path, Path] | None:
    """This host's loader and C library of GNU, where programs of it look for the one, and Debian has the other."""
    loader, library = Path("/lib64/ld-linux-x86-64.so.2"), Path("/lib/x86_64-linux-gnu/libc.so.6")
    return (loader, library) if loader.exists() and library.exists() else None


def find_static_busybox() -> Path | None:
    """One that needs nothing else of an image."""
    return next((path for place in ("bin", "usr/bin") if (path := UNPACKED / place / "busybox").exists()), None)


def _has_program(name: str) -> Callable[[], bool]:
    return lambda: find_program(name) is not None


def _has_module(name: str) -> Callable[[], bool]:
    def has_module() -> bool:
        try:
            return find_spec(name) is not None
        except ModuleNotFoundError:  # of the package that it would be in
            return False

    return has_module


def _has_what_makes_wheels() -> bool:
    return all(_has_module(name)() for name in ("hatchling", "ziglang", "pip"))


def _has_clang_format() -> bool:
    """The one of this environment: another version formats some lines another way."""
    return Path(sys.executable).with_name("clang-format").exists()


def _has_own_name() -> bool:
    try:
        socket.gethostbyname(socket.gethostname())
    except OSError:
        return False
    return True


def find_own_address() -> str | None:
    """The address that this host sends from, to whoever is elsewhere. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        try:
            asker.connect(("192.0.2.1", 9))  # of no host: RFC 5737
        except OSError:
            return None
        return asker.getsockname()[0]


def _has_own_address() -> bool:
    return find_own_address() is not None


@functools.cache
def _may_mount() -> bool:
    """Root of a container may be without the right; another user may not on a root in which others have mounted."""
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "vmfork-test", "/mnt"]
    return os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0


def _has_landlock() -> bool:
    """Its version is asked for (landlock_create_ruleset(2): 444 on every architecture)."""
    return ctypes.CDLL(None).syscall(444, None, 0, 1) >= 1


def _marks_writes() -> bool:
    """Soft-dirty, bit 55 of an entry of /proc/PID/pagemap: of a page that a process has just begun to use."""
    with mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as mapping:
        mapping[0] = 1
        place = ctypes.addressof(ctypes.c_char.from_buffer(mapping)) // mmap.PAGESIZE * 8
        with Path("/proc/self/pagemap").open("rb", buffering=0) as entries:
            return bool(os.pread(entries.fileno(), 8, place)[6] >> 7)


@dataclass(frozen=True, slots=True)
class Capability:
    """`missing` is the reason that a skipped test shows."""

    missing: str
    has: Callable[[], bool]


CAPABILITIES = {
    "root": Capability("only root may mount, and become or give to another user", lambda: os.geteuid() == 0),
    "no-root": Capability("root may read and write everywhere", lambda: os.geteuid() != 0),
    "qemu": Capability("qemu-system-x86_64 is not installed", _has_program("qemu-system-x86_64")),
    "slim-qemu": Capability("qemu-system-x86_64-microvm is not installed", _has_program("qemu-system-x86_64-microvm")),
    "kvm": Capability("there is no /dev/kvm here that may be opened", lambda: find_refusal() is None),
    "working-kvm": Capability("KVM does not run the guest here: make test-kvm runs this where it does", _always),
    "kvm-for-some": Capability("/dev/kvm is not there, or everybody's", _always),
    "refusing-kvm": Capability("KVM runs the guest here", _always),
    "brought-images": Capability("no images were brought: make test-kvm brings one of each kind", _always),
    "isolation": Capability("this host lets QEMU be kept from nothing: vmfork doctor says why", _always),
    "machine-users": Capability("the user ids that machines get are not known here", _always),
    "wheels": Capability("hatchling, ziglang or pip is not installed", _has_what_makes_wheels),
    "make": Capability("make is not installed", _has_program("make")),
    "mmdebstrap": Capability("mmdebstrap is not installed", _has_program("mmdebstrap")),
    "namespaces": Capability("only root may put a layer over this host's root", _may_mount),
    "another-root": Capability("only root, or who may make user namespaces, may have another root folder", _always),
    "passt": Capability("passt is not installed: make test installs it", _has_program("passt")),
    "own-address": Capability("this host has no address but its loopback's, or no default route", _has_own_address),
    "landlock": Capability("this kernel has no Landlock, or does not use it", _has_landlock),
    "noted-writes": Capability("this kernel does not note writes: Linux before 6.7", _always),
    "marked-writes": Capability(
        "this kernel marks no writes: it is built without CONFIG_MEM_SOFT_DIRTY", _marks_writes
    ),
    "no-marked-writes": Capability("this kernel marks writes", lambda: not _marks_writes()),
    "swap": Capability("this host has no swap, or did not swap out what it was asked to", _always),
    "huge-pages": Capability("this host gives no transparent huge pages", _always),
    "umoci": Capability("umoci is not there: make test brings it", _has_program("umoci")),
    "docker-registry": Capability("docker-registry is not there: make test brings it", _has_program("docker-registry")),
    "busybox": Capability(
        "busybox-static is not there: make test brings it", lambda: find_static_busybox() is not None
    ),
    "buildah": Capability("buildah is not installed", _has_program("buildah")),
    "skopeo": Capability("skopeo is not installed", _has_program("skopeo")),
    "musl": Capability("musl is not there: make test brings it", lambda: bool(find_musl())),
    "glibc": Capability("glibc is not where Debian has it", lambda: bool(find_glibc())),
    "stock-python": Capability("this Python is Debian's, which looks for modules elsewhere than others", _always),
    "ray": Capability("Ray is not installed: make test-cluster brings it", _has_module("ray")),
    "ip": Capability("ip of iproute2 is not installed", _has_program("ip")),
    "oras": Capability("oras is not installed", _has_module("oras")),
    "node": Capability("Node.js is not installed", _has_program("node")),
    "strace": Capability("strace is not installed: make test installs it", _has_program("strace")),
    "tmux": Capability("tmux is not installed: make test installs it", _has_program("tmux")),
    "clang-format": Capability("clang-format is not installed: make test installs it", _has_clang_format),
    "sqfstar": Capability("sqfstar is not installed: make test installs it", _has_program("sqfstar")),
    "qemu-img": Capability("qemu-img is not installed (Debian: qemu-utils)", _has_program("qemu-img")),
    "lz4": Capability("the program lz4 is not installed", _has_program("lz4")),
    "numpy": Capability("NumPy is not installed", _has_module("numpy")),
    "anyio": Capability("anyio is not installed", _has_module("anyio")),
    "matplotlib": Capability("matplotlib is not installed", _has_module("matplotlib")),
    "opentelemetry": Capability("OpenTelemetry's SDK is not installed", _has_module("opentelemetry.sdk.trace")),
    "attributes": Capability("files of this file system have no attributes of users", _always),
    "steady-tsc": Capability("the processor's TSC is not steady", _always),
    "openssl-3": Capability("OpenSSL before 3 does not tell how often it was seeded", _always),
    "debugging": Capability("processes may not be traced here, or their registers are not those of x86-64", _always),
    "control-groups": Capability("memory, CPU and processes cannot be limited by control groups here", _always),
    "memory-cgroup": Capability("no control group with a memory limit can be made here", _always),
    "python-for-others": Capability("no Python of 3.11 or newer can be run by an ordinary user here", _always),
    "own-name": Capability("this host's own name leads to no address", _has_own_name),
    "same-generator": Capability("another version of the gRPC generator is installed", _always),
}

_guaranteed: set[str] = set()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--guaranteed",
        metavar="NAME,...",
        default=os.environ.get("VMFORK_TEST_GUARANTEED", ""),
        help="fail in place of a skip where one of these is missing (or VMFORK_TEST_GUARANTEED)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*names): skipped where the host lacks one of tests.rules.capabilities")
    named = {name.strip() for name in config.getoption("guaranteed").split(",")} - {""}
    _guaranteed.clear()
    _guaranteed.update(named)
    if unknown := named - CAPABILITIES.keys():
        raise pytest.UsageError(f"no capability is called {', '.join(sorted(unknown))}: {', '.join(CAPABILITIES)}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("vm") is not None:
        need("qemu")
    for mark in item.iter_markers("needs"):
        for name in mark.args:
            need(name)


def need(name: str, *, found: bool = True) -> None:
    """Skips the test that runs, or fails it where that is guaranteed, unless the host has what is called `name`.

    `found` is what the caller saw itself.
    """
    capability = CAPABILITIES[name]
    if found and capability.has():
        return
    if name in _guaranteed:
        pytest.fail(f"{capability.missing}, and {name!r} is guaranteed", pytrace=False)
    pytest.skip(capability.missing)

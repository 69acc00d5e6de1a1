"""passt: a process of its own that carries one machine's network, with the host's, and without its loopback."""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from vmfork.errors import HostError
from vmfork.host.asking import ask_program, read_output
from vmfork.host.process import ProcessIdentity, identify, spawn
from vmfork.host.shipped import find_shipped

if TYPE_CHECKING:
    import asyncio
    import subprocess

    from vmfork.host.users import UserLease

_HINT = "install it: apt-get install passt"
_PROBE_LIMIT_S = 20.0
_UNKNOWN = "unknown version"
_RESOLVERS = Path("/etc/resolv.conf")
# An Ethernet address for whoever answers the guest, as QEMU's user network has one.
_MAC = "52:55:0a:00:02:02"


@dataclass(frozen=True, slots=True, kw_only=True)
class Passt:
    """The program; `version` is what it prints of itself, and empty where it does not tell.

    Debian 12's knows none. Debian 13's prints it to a terminal alone: it ends without writing out what it holds.
    """

    path: Path
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlet:
    """How one machine's card leads out by passt: the program, and the network that the guest sees.

    `address`, with `prefix` bits of network, is the guest's; `gateway` and `name_server` are answered for by passt.
    """

    program: Path
    address: str
    prefix: int
    gateway: str
    name_server: str


_probed: dict[tuple[Path, int, int], Passt] = {}


@cache
def find_fence() -> Path:
    """The library that keeps a passt from the host's loopback (fence/README.md). `HostError` when it is missing."""
    return find_shipped(f"fence-{os.uname().machine}.so", what="passt's library")


def locate_passt() -> Path:
    """Where it is. Runs nothing. Raises `HostError` when it is not installed."""
    found = shutil.which("passt")
    if found is None:
        raise HostError("passt was not found on PATH", hint=_HINT)
    return Path(found).resolve()


async def find_passt() -> Passt:
    """The first on PATH, its version asked of itself once per process.

    Raises `HostError` when it does not run, and when it does not load the library that keeps it from the loopback.
    """
    path = locate_passt()
    info = path.stat()
    key = (path, info.st_ino, info.st_mtime_ns)
    if key not in _probed:
        works, said = await _ask(path, {})
        if not works or (said and not said.startswith("passt")):
            raise HostError(f"{path} does not look like passt", hint=_HINT, log=said)
        # Told of nothing, the library ends whatever it is loaded into.
        still_works, _ = await _ask(path, {"LD_PRELOAD": str(find_fence())})
        if still_works:
            what = "does not load the library that keeps it from this host's loopback"
            raise HostError(f"{path} {what}", hint="use the distribution's: it is neither static nor has capabilities")
        _probed[key] = Passt(path=path, version="" if _UNKNOWN in said else said.removeprefix("passt").strip())
    return _probed[key]


async def _ask(path: Path, env: dict[str, str]) -> tuple[bool, str]:
    """Whether it tells its version without an error, and the first line that it prints of it."""
    try:
        return await ask_program(path, "--version", talk=_read_told, env=env, limit_s=_PROBE_LIMIT_S, hint=_HINT)
    except TimeoutError as error:
        raise HostError(f"{path} --version did not end within {_PROBE_LIMIT_S:g} s") from error


async def _read_told(child: asyncio.subprocess.Process) -> tuple[bool, str]:
    said = await read_output(child)
    return child.returncode == 0, said.partition("\n")[0]


class StartedPasst:
    """Owner of a passt that was just started, until a keeper has it (`hand_over`).

    `line` is QEMU's end of its network, a stream of frames; passt ends when the last copy of it is closed. `take_ready`
    gives what tells that it has come up, by a byte. `process` is a pidfd.
    """

    def __init__(
        self, child: subprocess.Popen[bytes], line: socket.socket, ready: int, lease: UserLease | None
    ) -> None:
        self.identity: ProcessIdentity = identify(child)
        self.process = os.pidfd_open(child.pid)
        self.line = line
        self._ready = ready
        self.lease = lease
        self._child = child

    @property
    def pid(self) -> int:
        return self._child.pid

    def hand_over(self) -> ProcessIdentity:
        """Another reaps it. What is open here is still to be closed."""
        self._child.returncode = 0  # else it warns, once it is dropped, that its process still runs
        return self.identity

    def take_ready(self) -> int:
        """The descriptor `ready`, which is the caller's now."""
        ready, self._ready = self._ready, -1
        return ready

    def close(self) -> None:
        """Our copies of what is open are closed. One that nobody has taken over is gone, and reaped."""
        self.line.close()
        if self._ready >= 0:
            os.close(self._ready)
        if self._child.returncode is None:
            self._child.kill()
            self._child.wait()
        os.close(self.process)


def start_passt(outlet: Outlet, *, log_fd: int, lease: UserLease | None = None) -> StartedPasst:
    """A running passt, which becomes the user of `lease` where there is one. Whether it comes up shows by `ready`.

    It has the host's network, reaches nothing by the host's loopback but a resolver that is there, takes no port of the
    host and lets nothing in. It writes to `log_fd`, 64 KiB at most. Raises `HostError` when it cannot be run.
    """
    with ExitStack() as always, ExitStack() as on_failure:
        line, its = socket.socketpair()
        on_failure.enter_context(line)
        always.enter_context(its)
        ready, told = os.pipe2(os.O_CLOEXEC)
        on_failure.callback(os.close, ready)
        always.callback(os.close, told)
        fd = max(its.fileno(), told) + 1  # the library makes it, before the program begins
        child = spawn(
            _build_command(outlet, fd=fd, lease=lease),
            log_fd=log_fd,
            pass_fds=(its.fileno(), told),
            env=_environment(passed=its.fileno(), told=fd, ready=told),
        )
        on_failure.callback(_end, child)
        started = StartedPasst(child, line, ready, lease)
        on_failure.pop_all()
    return started


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()


def _build_command(outlet: Outlet, *, fd: int, lease: UserLease | None) -> list[str]:
    return [
        str(outlet.program),
        *("--foreground", "--quiet"),
        *("--fd", str(fd)),
        *("--ipv4-only", "--no-map-gw", "--no-dhcp"),
        *("--tcp-ports", "none", "--udp-ports", "none"),
        *("--address", outlet.address, "--netmask", str(outlet.prefix), "--gateway", outlet.gateway),
        *("--mac-addr", _MAC),
        *("--dns-forward", outlet.name_server),
        *(() if lease is None else ("--runas", f"{lease.user}:{lease.user}")),
    ]


def _environment(*, passed: int, told: int, ready: int) -> dict[str, str]:
    """All of its environment: fence/given.c reads it."""
    resolver = read_own_resolver()
    return {
        "LD_PRELOAD": str(find_fence()),
        "VMFORK_FENCE_PASSED": str(passed),
        "VMFORK_FENCE_TOLD": str(told),
        "VMFORK_FENCE_READY": str(ready),
        **({} if resolver is None else {"VMFORK_FENCE_RESOLVER": resolver}),
    }


def read_own_resolver(path: Path = _RESOLVERS) -> str | None:
    """The host's first name server with an IPv4 address where that is one of its loopback (resolv.conf(5))."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return None
    for words in map(str.split, lines):
        if len(words) > 1 and words[0] == "nameserver":
            with suppress(ValueError):
                address = ipaddress.IPv4Address(words[1])
                return str(address) if address.is_loopback else None
    return None

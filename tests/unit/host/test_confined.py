"""What a confined program is kept from; in all else it is a program like any other. The keeper is the real one."""

from __future__ import annotations

import os
import shutil
import socket
import sys

import pytest

from vmfork.host.jail import Jail
from vmfork.host.keeper import KeptProcess

pytestmark = pytest.mark.usefixtures("nothing_left")

TRIES = """
import errno, os, threading
thread = threading.Thread(target=lambda: print("thread", "done"))
thread.start(); thread.join()
for name, attempt in {
    "fork": os.fork,
    "spawn": lambda: os.posix_spawn("/bin/true", ["true"], {}),
    "descriptor": lambda: os.execve(os.open("/bin/true", os.O_RDONLY), ["true"], {}),
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "user": lambda: os.setuid(os.getuid()),
    "session": os.setsid,
    "priority": lambda: os.setpriority(os.PRIO_PROCESS, 0, 19),
    "affinity": lambda: os.sched_setaffinity(0, os.sched_getaffinity(0)),
}.items():
    try:
        done = attempt()
    except OSError as error:
        done = errno.errorcode[error.errno]
    if done == 0 and name == "fork":
        os._exit(0)
    print(name, "done" if done in (None, 0) or isinstance(done, int) else done, flush=True)
"""


def run(log, tmp_path, *argv: str, confined: bool) -> KeptProcess:
    return KeptProcess.start(argv, log_fd=log[1], listen_at=tmp_path / "keeper.sock", confined=confined)


def read(log) -> str:
    return os.read(log[0], 65536).decode()


async def test_it_starts_nothing_and_becomes_nobody_else(log, tmp_path) -> None:
    process = run(log, tmp_path, sys.executable, "-c", TRIES, confined=True)
    assert await process.wait() == 0
    await process.aclose()
    said = dict(line.rsplit(" ", 1) for line in read(log).splitlines())
    # A program is told that there is no such call once nobody is left to ask.
    assert said == {
        "thread": "done", "fork": "EPERM", "spawn": "EPERM", "exec": "ENOSYS", "descriptor": "EPERM",
        "user": "EPERM", "session": "EPERM", "priority": "EPERM", "affinity": "EPERM",
    }  # fmt: skip


async def test_without_it_a_program_may_do_all_that(log, tmp_path) -> None:
    process = run(log, tmp_path, sys.executable, "-c", TRIES, confined=False)
    assert await process.wait() == 0
    await process.aclose()
    said = dict(line.rsplit(" ", 1) for line in read(log).splitlines())
    assert said["fork"] == said["spawn"] == "done"
    assert "exec" not in said  # it was another program by then


async def test_a_confined_program_that_is_not_there_ends_as_any_other(log, tmp_path) -> None:
    process = run(log, tmp_path, "/no/such/program", confined=True)
    assert await process.wait() == 127
    await process.aclose()
    assert "cannot run /no/such/program" in read(log)


async def test_closing_ends_it_at_once(log, tmp_path) -> None:
    # By its path: the filter lets it be started once, and a search for it would use that up.
    process = run(log, tmp_path, shutil.which("sleep"), "1000", confined=True)
    await process.aclose()
    assert process.has_ended


SOCKETS = """
import errno, socket, threading
def told(attempt):
    try:
        attempt()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
server = socket.socket(fileno=int(__import__("os").environ["SERVER"]))
print("inet", told(lambda: socket.socket(socket.AF_INET).connect(server.getsockname())))
print("datagram", told(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", server.getsockname())))
print("bind", told(lambda: socket.socket(socket.AF_INET).bind(("127.0.0.1", 0))))
print("unix", told(lambda: socket.socket(socket.AF_UNIX)))
print("netlink", told(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)))
print("packet", told(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)))
print("pair", told(socket.socketpair))
"""


@pytest.mark.parametrize("outward", [False, True])
async def test_it_connects_over_ip_where_it_is_let_and_in_no_other_way(log, tmp_path, outward) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        process = KeptProcess.start(
            (sys.executable, "-c", SOCKETS),
            log_fd=log[1],
            listen_at=tmp_path / "keeper.sock",
            confined=True,
            pass_fds=[server.fileno()],
            env={"SERVER": str(server.fileno())},
            jail=Jail(outward=outward),
        )
        assert await process.wait() == 0
        await process.aclose()
    said = dict(line.rsplit(" ", 1) for line in read(log).splitlines())
    over_ip = "done" if outward else "EPERM"
    assert said == {
        "inet": over_ip, "datagram": over_ip, "bind": "EPERM", "unix": "EPERM", "netlink": "EPERM", "packet": "EPERM",
        "pair": "EPERM" if outward else "done",
    }  # fmt: skip


@pytest.mark.parametrize("file_mib", [0, 1000])
async def test_a_file_may_have_what_its_disk_needs_and_no_more(log, tmp_path, file_mib) -> None:
    process = KeptProcess.start(
        (sys.executable, "-c", "import resource; print(*resource.getrlimit(resource.RLIMIT_FSIZE))"),
        log_fd=log[1],
        listen_at=tmp_path / "keeper.sock",
        confined=True,
        jail=Jail(file_mib=file_mib),
    )
    assert await process.wait() == 0
    await process.aclose()
    assert read(log).split() == [str((64 + file_mib) << 20)] * 2

"""The system calls of the shipped agent are those that guest/README.md declares: strace watches it at work."""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import signal
import socket
import subprocess
import uuid
from pathlib import Path

import pytest

from tests.unit.system_calls import called, check_declared, declared, pid_of
from vmfork.agent.client import AgentClient
from vmfork.errors import DeadlineExceeded, VMForkError
from vmfork.host.packing import Packing
from vmfork.host.unpacking import Place, Unpacking
from vmfork.image.recipe import find_agent
from vmfork.wire.command import Command, Window
from vmfork.wire.message import Asked

LIMIT_S = 30
INIT = 'execve("/init"'

pytestmark = pytest.mark.needs("strace", "root")


DECLARED = declared("guest")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Open to every user, because a program of one runs in it."""
    tmp_path.chmod(0o755)
    (tmp_path / "etc").mkdir()
    (tmp_path / "run").mkdir()
    return tmp_path


async def work(sock: socket.socket, folder: Path) -> None:
    """Everything an agent is asked for."""
    async with await AgentClient.open(sock) as client:
        await client.hello(take_over=False)
        await run_programs(client)
        await use_files(client, folder)
        await use_ports(client)
        await use_asks(client, folder)
        await adopt(client, folder)
        await client.clock()
        await client.quiesce()
        await client.shutdown()


async def run_programs(client: AgentClient) -> None:
    await client.exec(Command(["cat"]), input=b"x" * 300_000, timeout_s=LIMIT_S)
    await client.exec(Command(["true"], user="nobody", cwd="/"), timeout_s=LIMIT_S)
    async with await client.start_exec(Command(["cat"], user="nobody", cwd="/", window=Window(24, 80))) as typing:
        await typing.resize(25, 90)
        await typing.write_stdin(b"a line and a half\nhalf")
        await typing.close_stdin()
        assert [_ async for _ in typing.output()]
    with pytest.raises(VMForkError):
        await client.exec(Command(["no-such-program"]), timeout_s=LIMIT_S)
    with pytest.raises(DeadlineExceeded):
        await client.exec(Command(["sleep", "60"]), timeout_s=0.1)
    # What runs on is moved to where the agent is.
    _, stdout, _ = await client.exec(Command(["sh", "-c", "setsid sleep 60 & echo $!"]), timeout_s=LIMIT_S)
    os.kill(int(stdout), signal.SIGKILL)


async def use_files(client: AgentClient, folder: Path) -> None:
    path = str(folder / "deep" / "file")
    await client.write_file(path, b"x" * 200_000, parents=True)
    await client.write_file(path, b"more", append=True)
    await client.write_file(f"{path}-2", b"more", exclusive=True)
    (folder / "link").symlink_to(path)
    await client.write_file(str(folder / "link"), b"x" * 200_000)
    await client.stat(str(folder / "link"))
    assert len(await client.read_file(path, offset=100_000)) == 100_000
    os.link(path, f"{path}-3")
    await client.write_file(path, b"in place")
    os.setxattr(f"{path}-2", "trusted.note", b"kept")
    os.chown(f"{path}-2", 1, 1)
    await client.write_file(f"{path}-2", b"with the owner and attributes it had")
    # Where files lie in memory, what is left of it is asked for.
    await client.write_file("/mnt/file", b"x" * 200_000)
    os.mkfifo(folder / "pipe")
    writing = asyncio.ensure_future(client.write_file(str(folder / "pipe"), b"nobody reads yet"))
    # An agent that finds a reader at once has no need of the child that waits for one.
    await asyncio.to_thread(wait_for, folder / "trace", "close_range(")
    assert await asyncio.to_thread((folder / "pipe").read_bytes) == b"nobody reads yet"
    await writing
    await client.list_dir(str(folder))
    await use_trees(client, folder)
    async with await client.watch(str(folder), recursive=True) as watch:
        (folder / "moved").rename(folder / "again")
        while (event := await watch.next()) is not None and event.kind != "moved-here":
            pass
    await client.make_dir(str(folder / "deep" / "er"))
    await client.remove(str(folder / "deep"), recursive=True)


async def use_ports(client: AgentClient) -> None:
    """To the end, given up, and refused."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        for is_whole in (True, False):
            connection = await client.open_tunnel(port)
            with listener.accept()[0] as service:
                service.send(b"hello")
                assert await connection.read() == b"hello"
                if is_whole:
                    await connection.write_eof()
                    assert await asyncio.to_thread(service.recv, 1) == b""
                    await connection.aclose()
                else:
                    await connection.abort()
    with pytest.raises(VMForkError):
        await client.open_tunnel(port)
    listening = await client.listen(port)
    with socket.create_connection(("127.0.0.1", port)) as caller:
        connection = await client.attach(listening, await listening.next_caller(), port=port)
        await connection.write(b"hello")
        assert await asyncio.to_thread(caller.recv, 5) == b"hello"
        await connection.abort()
    client.abandon(listening)


async def use_asks(client: AgentClient, folder: Path) -> None:
    told: asyncio.Queue[Asked] = asyncio.Queue()
    serving = await client.serve(told.put_nowait)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as program:
        program.connect(str(folder / "run" / "vmfork" / "ask"))
        program.send(b"fork 1")
        assert await client.answer((await told.get()).number, b"forked 0")
        assert await asyncio.to_thread(program.recv, 100) == b"forked 0"
    client.abandon(serving)


async def use_trees(client: AgentClient, folder: Path) -> None:
    tree = folder / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "file").write_bytes(b"x" * 200_000)
    os.link(tree / "file", tree / "sub" / "again")
    (tree / "link").symlink_to("file")
    with (tree / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 20)
        sparse.seek(1 << 19)
        sparse.write(b"x")
    for archive in (False, True):
        await client.put(Packing(str(tree)), str(folder / "new" / "copy"), parents=True, archive=archive)
    # In memory: what is left of it is asked for with every MiB.
    (tree / "large").write_bytes(b"x" * (3 << 20))
    await client.put(Packing(str(tree)), "/mnt/copy")
    place = Unpacking(Place(path=str(folder / "back"), name="copy", operation="copying"))
    await client.get(str(folder / "new" / "copy"), place)
    await client.list_tree(str(folder / "new"))
    await client.move(str(folder / "new"), str(folder / "moved"))
    await client.change(str(folder / "moved"), mode=0o700, user="daemon", group="daemon")


async def adopt(client: AgentClient, folder: Path) -> None:
    items = {
        "generation": b"a" * 32, "fork-id": b"f", "machine-id": b"b" * 32, "template": b"t", "env": b"A=1",
        "entropy": os.urandom(64), "hostname": b"fork", "boot-id": str(uuid.uuid4()).encode(),
    }  # fmt: skip
    outcomes = await client.adopt(list(items.items()))
    assert {outcome.outcome for outcome in outcomes} == {"ok"}
    watchers = folder / "run" / "vmfork" / "watchers"
    watchers.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as watcher:
        watcher.bind(str(watchers / "1"))
        telling = asyncio.ensure_future(client.notify(LIMIT_S))
        generation, address = await asyncio.to_thread(watcher.recvfrom, 100)
        watcher.sendto(b"ok " + generation, address)
        await telling
    os.unlink(watchers / "1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ended:
        ended.bind(str(watchers / "2"))
    await client.notify(LIMIT_S)


async def test_at_work_it_calls_what_is_declared(folder: Path) -> None:
    ours, theirs = socket.socketpair()
    trace = folder / "trace"
    # Host name and mounts of its own: it may do everything, and the host keeps what it has.
    mount = 'mount -t cgroup2 cgroup2 /sys/fs/cgroup && mount -t tmpfs tmpfs /mnt && exec "$@"'
    argv = ["unshare", "--uts", "--mount", "sh", "-c", mount, "sh"]
    argv += ["strace", "-f", "-b", "execve", "-o", str(trace), str(find_agent())]
    with theirs:
        argv += ["--fd", str(theirs.fileno()), "--root", str(folder), "--privileged"]
        process = subprocess.Popen(argv, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE)
    try:
        await work(ours, folder)
        _, complaint = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
    assert (process.returncode, complaint) == (0, b"")
    check_declared(called(trace), DECLARED["at work"], DECLARED["now and then"])


def test_as_init_it_calls_what_is_declared(folder: Path) -> None:
    """In namespaces of its own, where it finds no port and waits for one."""
    trace, init = folder / "trace", folder / "init"
    shutil.copy(find_agent(), init)
    (folder / "etc" / "vmfork").mkdir()
    (folder / "etc" / "vmfork" / "modules").write_text("/etc/no-module\n")
    (folder / "etc" / "no-module").write_text("not one")
    (folder / "etc" / "vmfork" / "attributes").write_bytes(b"/etc/no-module\0user.a\x0061\0")
    argv = ["strace", "-f", "-o", trace, "unshare", "--pid", "--fork", "--mount", "--uts", "--net", "--ipc"]
    process = subprocess.Popen([*argv, "--kill-child", "--root", folder, "/init"], stderr=subprocess.PIPE)
    try:
        wait_for(trace, "recvfrom(")
    finally:
        # With its init everything in the namespace ends, then who waits for it, and strace.
        os.kill(pid_of(trace, INIT), signal.SIGKILL)
        process.communicate(timeout=LIMIT_S)
    # Where the test's folder is on a tmpfs, as /tmp of Debian 13 is, that is given a size, as in a machine.
    check_declared(called(trace, after=INIT), DECLARED["as init"], DECLARED["at work"] | DECLARED["in a machine only"])


def wait_for(trace: Path, text: str) -> None:
    """strace writes a line as soon as the call is made."""
    for _ in range(LIMIT_S * 50):
        if trace.exists() and text in trace.read_text():
            return
        select.select([], [], [], 0.02)
    pytest.fail(f"no {text} in {trace.read_text()[-500:]}")

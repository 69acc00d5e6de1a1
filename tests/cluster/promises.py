"""What every cluster keeps, whatever joins its nodes: Ray (`test_promises.py`), a list (`tests/vm/test_servers.py`).

Each is given a cluster of at least two nodes, of which one has the template.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from importlib import import_module

import pytest

import vmfork
from tests.recorded_spans import read_told, record_spans
from vmfork.aio import Template
from vmfork.errors import ConfigError, NoNode, TemplateNotFound, VMNotFound

# Calls under way at once: more than a machine has processors, or a pool of threads workers.
_LONG = 40


async def a_machine_does_what_one_of_this_host_does(cluster, template, tmp_path) -> None:
    async with cluster.fork(template, env={"WHO": "me"}, files={"/root/given": b"x"}) as vm:
        result = await vm.exec(["sh", "-c", "echo $WHO; cat /root/given; cat; exit 3"], input=b"in")
        assert (result.stdout, result.exit_code) == ("me\nxin", 3)
        assert (await vm.run_code("a = 20\na + 1")).value == "21"
        assert (await vm.run_code("a * 2")).value == "40"
        await vm.write_file("/root/written", b"\0\xff")
        assert await vm.read_file("/root/written") == b"\0\xff"
        with pytest.raises(vmfork.ExecError):
            await vm.exec(["/no/such/program"])
        with pytest.raises(vmfork.GuestFileError, match="/no/such"):
            await vm.read_file("/no/such")
        (fork,) = await vm.fork()
        assert fork.node == vm.node
        assert (await fork.exec(["cat", "/root/given"])).stdout == "x"
        await fork.aclose()
    with pytest.raises(VMNotFound):
        await vm.exec(["true"])


async def what_a_program_writes_comes_in_pieces(cluster, template, tmp_path) -> None:
    async with cluster.fork(template) as vm:
        events = vm.stream(["sh", "-c", "echo one; exec sleep 12345"])
        first = await anext(events)
        assert (first.kind, first.data) == ("stdout", b"one\n")  # while it runs on
        await events.aclose()
        pieces = [event async for event in vm.stream(["sh", "-c", "echo two >&2; exit 4"])]
        assert [(event.kind, event.data) for event in pieces[:-1]] == [("stderr", b"two\n")]
        assert pieces[-1].result.exit_code == 4


async def programs_that_run_long_hold_up_nothing(cluster, template, tmp_path) -> None:
    async with cluster.fork(template) as vm:
        running = [asyncio.ensure_future(vm.exec(["sleep", "600"])) for _ in range(_LONG)]
        count = "cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep -cx 600"
        while (await vm.shell(count)).stdout != f"{_LONG}\n":
            await asyncio.sleep(0.1)
        assert vm.id in {each["id"] for each in (await cluster.status())["machines"]}
        async with cluster.fork(template, node=vm.node) as other:
            assert (await other.exec(["echo", "at once"])).stdout == "at once\n"
        assert await vm.ping() > 0
        assert not any(each.done() for each in running)
        for each in running:
            each.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def files_go_and_come_back(cluster, template, tmp_path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "file").write_bytes(os.urandom(5_000_000))
    async with cluster.fork(template) as vm:
        assert (await vm.put(source, "/root/there")).files == 1
        assert (await vm.get("/root/there", tmp_path / "back")).size_bytes == 5_000_000
    assert (tmp_path / "back/deep/file").read_bytes() == (source / "deep/file").read_bytes()


async def one_key_is_one_machine(cluster, template, tmp_path) -> None:
    one, other = await asyncio.gather(*(cluster.fork(template, key="shared") for _ in range(2)))
    assert one.id == other.id == (await cluster.find("shared")).id
    await one.aclose()
    async with cluster.fork(template, key="shared") as again:
        assert again.id != one.id


async def who_is_cancelled_leaves_nothing(cluster, template, tmp_path) -> None:
    async with cluster.fork(template) as vm:
        task = asyncio.ensure_future(vm.exec(["sh", "-c", "touch /root/runs; exec sleep 12345"]))
        while not (await vm.exec(["test", "-e", "/root/runs"])).ok:
            assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while (await vm.exec(["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"])).stdout.count("sleep 12345"):
            await asyncio.sleep(0.05)


async def a_template_goes_to_all_and_machines_are_spread(cluster, template, tmp_path) -> None:
    await cluster.prefetch(template)
    told = await cluster.status()
    names = {node["name"] for node in told["nodes"]}
    assert {*next(each for each in told["templates"] if each["name"] == template)["nodes"]} == names
    vms = await cluster.fork_many(template, len(names), spread="node")
    assert Counter(vm.node for vm in vms) == dict.fromkeys(names, 1)
    boots = await asyncio.gather(*(vm.exec(["cat", "/proc/sys/kernel/random/boot_id"]) for vm in vms))
    assert len({each.stdout for each in boots}) == len(names)
    await asyncio.gather(*(vm.aclose() for vm in vms))
    node = max(names)
    vms = await cluster.fork_many(template, 2, node=node)
    assert [vm.node for vm in vms] == [node] * 2
    await asyncio.gather(*(vm.aclose() for vm in vms))


async def what_nobody_has_is_told_at_once(cluster, template, tmp_path) -> None:
    with pytest.raises(NoNode, match="rack=9"):
        await cluster.fork(template, label="rack=9")
    with pytest.raises(NoNode, match="no node is named"):
        await cluster.fork(template, node="nobody")
    with pytest.raises(TemplateNotFound):
        await cluster.fork("no-such-template")


async def what_cannot_be_copied_is_told_as_by_a_machine_of_this_host(cluster, template, tmp_path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_text("x")
    async with cluster.fork(template) as vm:
        for source, says in (("fifo", "neither a file nor a folder"), ("none", "cannot be copied")):
            with pytest.raises(ConfigError, match=says):
                await vm.put(tmp_path / source, "/root/there")
            assert not await vm.exists("/root/there")
        with pytest.raises(vmfork.GuestFileError, match="Not a directory"):
            await vm.put(tmp_path / "file", "/root/folder/")
        assert not await vm.exists("/root/folder")
        with pytest.raises(ConfigError, match="there is no folder"):
            await vm.get("/etc/hostname", tmp_path / "no" / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo", "file"]


async def what_a_node_does_is_in_the_trace_of_whoever_asked(cluster, template, node, folder) -> None:
    """The node's process tells its spans to `folder` (`tests/recorded_spans.py`). What asks for no trace is in none."""
    record_spans()
    async with cluster.fork(template, node=node) as vm:
        with import_module("opentelemetry.trace").get_tracer("test").start_as_current_span("caller") as span:
            await vm.exec(["true"], check=True)
            assert [event.kind async for event in vm.stream(["true"])] == ["end"]
            async with cluster.fork(template, node=node):
                pass
        trace_id = f"{span.get_span_context().trace_id:032x}"
        before = read_told(folder)
        await vm.exec(["true"], check=True)
    assert {"vmfork.fork", "vmfork.exec"} <= {name for name, told in before if told == trace_id}
    assert {name for name, _ in read_told(folder) - before} == {"vmfork.exec"}  # of a trace of its own


async def a_machine_has_the_files_and_states_of_one_of_this_host(cluster, template, tmp_path) -> None:
    async with cluster.fork(template, disk="64M", allow_guest_fork=1) as vm:
        assert await vm.exists("/scratch/lost+found")  # of a file system of its own
        await vm.make_dir("/root/a/b", parents=True)
        await vm.write_file("/root/a/c/d", "text", mode=0o600, parents=True)
        told = await vm.stat("/root/a/c/d")
        assert (told.type, told.mode, told.size) == ("file", 0o600, 4)
        assert await vm.is_dir("/root/a/b")
        assert [(each.name, each.type) for each in await vm.list_dir("/root/a")] == [("b", "dir"), ("c", "dir")]
        assert [each.name for each in await vm.list_dir("/root/a", recursive=True, glob="d")] == ["c/d"]
        await vm.move("/root/a/c/d", "/root/a/e")
        await vm.chmod("/root/a/e", 0o640)
        await vm.chown("/root/a/e", user="1", group="2")
        assert (await vm.shell("stat -c '%a %u %g' /root/a/e")).stdout == "640 1 2\n"
        assert (await vm.run_code("open('made', 'w').write('by code')", made_in="/root")).files
        await vm.remove("/root/a", recursive=True)
        assert not await vm.exists("/root/a")
        with pytest.raises(vmfork.GuestFileError, match="/root/a"):
            await vm.stat("/root/a")
        (tmp_path / "given").write_text("given")
        await vm.put(tmp_path / "given", "/new/folder/of", parents=True)
        assert await vm.read_file("/new/folder/of") == b"given"
        index = "import vmfork_guest as g; index = g.fork(1); index and g.exit(7); print(g.wait().status)"
        assert (await vm.exec(["python3", "-c", index])).stdout == "7\n"

        assert (await vm.stats()).own_bytes > 0
        assert await vm.ping() > 0
        await vm.shell("echo to the console > /dev/console")
        while "to the console" not in await vm.console_tail():
            await asyncio.sleep(0.05)
        await vm.pause()
        waiting = asyncio.ensure_future(vm.exec(["true"]))
        given = {"/root/more": b"more"}
        (fork,) = await vm.fork(env={"WHO": "fork"}, files=given)  # as it stands; it runs itself
        async with fork:
            assert (await fork.shell("echo $WHO; cat /root/more")).stdout == "fork\nmore"
        assert not waiting.done()
        await vm.resume()
        assert (await waiting).ok
        with pytest.raises(vmfork.ConfigError, match="disk"):
            await vm.fork(disk="96M")


async def the_disk_of_a_template_goes_with_it(cluster, template, places, node) -> None:
    """`places` are those of the node that has the template; `node` is another. Leaves `with-disk` on both."""
    async with await (await Template.open(template, places=places)).fork(disk="64M") as vm:
        await vm.write_file("/scratch/text", "from there")
        await vm.freeze("with-disk", replace=True, places=places)
    while "with-disk" not in {each["name"] for each in (await cluster.status())["templates"]}:
        await asyncio.sleep(0.1)  # it is looked at each second
    async with cluster.fork("with-disk", node=node) as vm:
        assert vm.node == node
        assert await vm.read_file("/scratch/text") == b"from there"
        await vm.write_file("/scratch/text", "its own")
        (fork,) = await vm.fork()
        async with fork:
            assert await fork.read_file("/scratch/text") == b"its own"
    async with cluster.fork("with-disk", node=node) as vm:
        assert await vm.read_file("/scratch/text") == b"from there"


PROMISES = (
    programs_that_run_long_hold_up_nothing,
    a_machine_does_what_one_of_this_host_does,
    a_machine_has_the_files_and_states_of_one_of_this_host,
    what_a_program_writes_comes_in_pieces,
    files_go_and_come_back,
    what_cannot_be_copied_is_told_as_by_a_machine_of_this_host,
    one_key_is_one_machine,
    who_is_cancelled_leaves_nothing,
    what_nobody_has_is_told_at_once,
    a_template_goes_to_all_and_machines_are_spread,
)

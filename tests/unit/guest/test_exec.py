"""Programs: starting, output, input, credit, ends."""

from __future__ import annotations

import asyncio
import os
import pwd
import resource
import select
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.timing import held_time
from vmfork.agent.client import AgentClient
from vmfork.errors import ConfigError, DeadlineExceeded, ExecError, GuestError, LimitExceeded
from vmfork.wire.command import Command
from vmfork.wire.frame import PROTOCOL, Channel, Kind, encode_frame
from vmfork.wire.message import exec_request as encode_exec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

as_root = pytest.mark.needs("root")
LIMIT_S = 30


def exec_request(stream: int, argv: list[str]) -> bytes:
    return encode_exec(stream, Command(argv))[0]


async def out(agent, *argv: str, **options) -> str:
    status, stdout, stderr = await agent.exec(Command(argv, **options), timeout_s=20)
    assert (status.exit_code, stderr) == (0, b"")
    return stdout.decode()


def gone(pid: int) -> None:
    """The process has ended, or does so soon. It is not ours to wait for, but a descriptor of it tells."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended, _, _ = select.select([descriptor], [], [], LIMIT_S)
    os.close(descriptor)
    assert ended, f"process {pid} still runs"


async def run_to_its_limit(agent, script: str, folder: Path) -> DeadlineExceeded:
    """The error. Its limit of a minute passes once the script has written to the pipe that it knows as `{up}`."""
    up = folder / "up"
    os.mkfifo(up)
    with held_time() as time:
        running = asyncio.ensure_future(agent.exec(Command(["sh", "-c", script.format(up=up)]), timeout_s=60))
        await asyncio.to_thread(up.read_bytes)
        time.pass_by(60)
        with pytest.raises(DeadlineExceeded) as caught:
            await running
    return caught.value


async def test_output_comes_apart_and_whole(agent) -> None:
    status, stdout, stderr = await agent.exec(Command(["sh", "-c", "echo out; echo err >&2; exit 3"]), timeout_s=20)
    assert (status.kind, status.number, stdout, stderr) == ("exit", 3, b"out\n", b"err\n")
    assert 0 < status.duration_s < 20


@pytest.mark.parametrize("script", ["printf 0123456789", "printf 0123456789 >&2", "printf 01234; printf 56789 >&2"])
async def test_output_of_just_the_limit_is_taken_and_a_byte_more_is_not(agent, script) -> None:
    command = Command(["sh", "-c", script])
    _, stdout, stderr = await agent.exec(command, max_output=10, timeout_s=20)
    assert stdout + stderr == b"0123456789"
    with pytest.raises(LimitExceeded, match="gave more than 9 bytes") as told:
        await agent.exec(command, max_output=9, timeout_s=20)
    came = told.value.stdout + told.value.stderr
    assert (told.value.limit_bytes, len(came), b"0123456789".startswith(told.value.stdout)) == (9, 9, True)
    assert "max_output" in told.value.hint
    assert (await agent.exec(command, max_output=None, timeout_s=20))[1:] == (stdout, stderr)


async def test_by_default_256_mib_of_output_are_taken(agent) -> None:
    command = Command(["head", "-c", str(256 * 1024 * 1024), "/dev/zero"])
    assert len((await agent.exec(command))[1]) == 256 * 1024 * 1024


async def test_by_default_not_a_byte_more_than_256_mib_is_taken(agent) -> None:
    with pytest.raises(LimitExceeded) as told:
        await agent.exec(Command(["head", "-c", str(256 * 1024 * 1024 + 1), "/dev/zero"]))
    assert len(told.value.stdout) == told.value.limit_bytes == 256 * 1024 * 1024


@pytest.mark.parametrize("timeout_s", [None, 60])
async def test_a_program_that_writes_without_end_is_ended(agent, tmp_path: Path, timeout_s) -> None:
    script = f"echo $$ > {tmp_path}/pid; exec yes"
    with pytest.raises(LimitExceeded) as told:
        await agent.exec(Command(["sh", "-c", script]), max_output=1_000_000, timeout_s=timeout_s)
    assert len(told.value.stdout) == 1_000_000
    gone(int((tmp_path / "pid").read_text()))
    assert await out(agent, "echo", "and on") == "and on\n"


async def test_a_signal_is_an_end_of_its_own(agent) -> None:
    status, _, _ = await agent.exec(Command(["sh", "-c", "kill -SEGV $$"]), timeout_s=20)
    assert (status.kind, status.number, status.exit_code) == ("signal", 11, 139)


@pytest.mark.parametrize(
    ("program", "exit_code"),
    [
        ("no-such-program", 127),
        ("/no/such/file", 127),
        ("/etc/passwd", 126),
        ("/", 126),
        ("/etc/passwd/below", 127),
    ],
)
async def test_a_program_that_cannot_start_says_why(agent, program: str, exit_code: int) -> None:
    with pytest.raises(ExecError) as caught:
        await agent.exec(Command([program]), timeout_s=20)
    assert caught.value.exit_code == exit_code


async def test_a_file_that_is_no_program_is_not_executable(agent, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("echo no shebang")
    script.chmod(0o755)
    with pytest.raises(ExecError) as caught:
        await agent.exec(Command([str(script)]), timeout_s=20)
    assert caught.value.exit_code == 126


async def test_a_failed_start_leaves_no_process(agent) -> None:
    for _ in range(20):
        with pytest.raises(ExecError):
            await agent.exec(Command(["no-such-program"]), timeout_s=20)
    ours = await out(agent, "sh", "-c", "ps --no-headers --ppid $PPID | wc -l")
    assert ours.strip() == "1"


async def test_the_path_is_that_of_the_process(agent, tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\necho found\n")
    tool.chmod(0o755)
    with pytest.raises(ExecError):
        await agent.exec(Command(["tool"]), timeout_s=20)
    assert await out(agent, "tool", env={"PATH": f"/none:{tmp_path}"}) == "found\n"
    assert await out(agent, "true", clean_env=True) == ""


async def test_variables_are_added_or_stand_alone(agent) -> None:
    inherited = (await out(agent, "env", env={"A": "1", "HOME": "/elsewhere"})).split()
    assert {"A=1", "HOME=/elsewhere", "LC_ALL=C"} <= set(inherited)
    assert sum(line.startswith("HOME=") for line in inherited) == 1
    assert (await out(agent, "env", env={"A": "x=y"}, clean_env=True)).split() == ["A=x=y"]


async def test_arguments_arrive_as_they_are(agent) -> None:
    argv = ["printf", "%s|", "", "two words", "new\nline", "\udcff", "ü"]
    assert (await agent.exec(Command(argv), timeout_s=20))[1] == b"|two words|new\nline|\xff|\xc3\xbc|"


async def test_the_folder_is_the_one_asked_for(agent, tmp_path: Path) -> None:
    assert await out(agent, "pwd", cwd=str(tmp_path)) == f"{tmp_path}\n"
    assert await out(agent, "pwd") == "/\n"
    with pytest.raises(GuestError, match="/no/where"):
        await agent.exec(Command(["pwd"], cwd="/no/where"), timeout_s=20)


@as_root
async def test_a_user_gets_its_groups_home_and_name(agent) -> None:
    entry = pwd.getpwnam("nobody")
    shown = await out(agent, "sh", "-c", 'echo "$(id -u) $(id -g) $HOME $USER $LOGNAME"', user="nobody")
    assert shown.split() == [str(entry.pw_uid), str(entry.pw_gid), entry.pw_dir, "nobody", "nobody"]
    assert await out(agent, "id", "-un", user=str(entry.pw_uid)) == "nobody\n"
    assert (await out(agent, "id", "-G", user="nobody")).split() == [
        str(group) for group in os.getgrouplist("nobody", entry.pw_gid)
    ]


@as_root
async def test_a_program_the_user_may_not_run_is_not_executable(agent, tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o700)
    with pytest.raises(ExecError) as caught:
        await agent.exec(Command([str(tool)], user="nobody"), timeout_s=20)
    assert caught.value.exit_code == 126


async def test_a_user_that_is_not_there_is_named(agent) -> None:
    with pytest.raises(GuestError, match="no user 'nosuchuser'"):
        await agent.exec(Command(["true"], user="nosuchuser"), timeout_s=20)


async def test_a_process_leads_its_own_session_with_clean_signals(agent) -> None:
    shown = await out(agent, "sh", "-c", "ps -o pid=,pgid=,sid= -p $$; grep -E 'Sig(Blk|Ign)' /proc/self/status")
    ids, blocked, ignored = shown.strip().splitlines()
    assert len(set(ids.split())) == 1
    # 32 and 33 are the C library's own; it lets nobody change them.
    reserved = 1 << 31 | 1 << 32
    assert int(blocked.split()[1], 16) == int(ignored.split()[1], 16) & ~reserved == 0


async def test_only_three_descriptors_are_inherited(agent) -> None:
    script = "for n in 3 4 5 6 7 8 9 10 11 12; do readlink /proc/self/fd/$n; done; true"
    assert await out(agent, "sh", "-c", script) == ""


async def test_input_of_any_size_goes_through(agent) -> None:
    content = os.urandom(1_000_000)
    status, stdout, _ = await agent.exec(Command(["cat"]), input=content, timeout_s=20)
    assert (status.exit_code, stdout) == (0, content)
    assert (await agent.exec(Command(["cat"]), input=b"", timeout_s=20))[1] == b""


async def test_input_that_is_not_read_holds_nobody_up(agent) -> None:
    status, _, _ = await agent.exec(Command(["true"]), input=b"x" * 1_000_000, timeout_s=20)
    assert status.exit_code == 0
    status, stdout, _ = await agent.exec(
        Command(["sh", "-c", "exec 0<&-; sleep 0.05; echo done"]), input=b"x" * 1_000_000, timeout_s=20
    )
    assert stdout == b"done\n"


async def test_input_is_written_as_it_comes(agent) -> None:
    async with await agent.start_exec(Command(["cat"], stdin=True)) as process:
        output = process.output()
        for line in (b"one\n", b"two\n"):
            await process.write_stdin(line, timeout_s=10)
            assert await anext(output) == (Channel.STDOUT, line)
        await process.close_stdin()
        assert [piece async for piece in output] == []
        assert (await process.wait(timeout_s=10)).exit_code == 0


async def test_writing_to_a_process_that_does_not_read_waits(agent) -> None:
    async with await agent.start_exec(Command(["sleep", "60"], stdin=True)) as process:
        with pytest.raises(DeadlineExceeded):
            await process.write_stdin(b"x" * 400_000, timeout_s=0.1)
        await agent.ping()


async def test_large_output_is_complete(agent) -> None:
    status, stdout, stderr = await agent.exec(
        Command(["sh", "-c", "head -c 3000000 /dev/zero & head -c 2000000 /dev/zero >&2; wait"]), timeout_s=20
    )
    assert (status.exit_code, len(stdout), len(stderr)) == (0, 3_000_000, 2_000_000)


async def test_a_slow_reader_stops_the_process_and_not_the_agent(agent, tmp_path: Path) -> None:
    done = tmp_path / "done"
    async with await agent.start_exec(Command(["sh", "-c", f"head -c 1000000 /dev/zero; touch {done}"])) as process:
        output = process.output()
        total = len((await anext(output))[1])
        assert (await agent.exec(Command(["echo", "alive"]), timeout_s=20))[1] == b"alive\n"
        assert not done.exists()
        total += sum([len(data) async for _, data in output])
        assert total == 1_000_000
        assert done.exists()
        assert (await process.wait(timeout_s=10)).exit_code == 0


async def test_the_end_does_not_wait_for_children_that_keep_the_pipe(agent) -> None:
    status, stdout, _ = await agent.exec(Command(["sh", "-c", "echo first; sleep 1000 & echo $!"]), timeout_s=LIMIT_S)
    assert status.exit_code == 0
    first, pid = stdout.split()
    assert first == b"first"
    os.kill(int(pid), signal.SIGKILL)


async def test_the_end_does_not_wait_for_children_that_write_for_ever(agent) -> None:
    status, stdout, _ = await agent.exec(Command(["sh", "-c", "yes & echo $! >&2; sleep 0.05"]), timeout_s=LIMIT_S)
    assert status.exit_code == 0
    assert len(stdout) < 100_000_000


async def test_output_of_a_process_that_ended_waits_for_credit(agent) -> None:
    async with await agent.start_exec(Command(["sh", "-c", "head -c 100000 /dev/zero; exit 4"])) as process:
        await asyncio.sleep(0.1)
        assert not process.has_ended
        assert sum([len(data) async for _, data in process.output()]) == 100_000
        assert (await process.wait(timeout_s=10)).exit_code == 4


async def test_the_time_limit_kills_the_whole_group(agent, tmp_path: Path) -> None:
    script = "echo begun; echo oops >&2; sleep 1000 & echo $!; echo > {up}; wait"
    error = await run_to_its_limit(agent, script, tmp_path)
    begun, child = error.stdout.split()
    assert (begun, error.stderr, error.limit_s) == (b"begun", b"oops\n", 60)
    gone(int(child))
    await agent.quiesce()


async def test_a_cancelled_exec_is_killed(agent, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    running = asyncio.ensure_future(agent.exec(Command(["sh", "-c", f"echo $$ > {pipe}; sleep 60"])))
    pid = int(await asyncio.to_thread(pipe.read_text))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    gone(pid)
    await agent.ping()


async def test_a_signal_reaches_the_group(agent) -> None:
    script = "trap 'echo got it; exit 7' TERM; echo ready; while :; do sleep 0.01; done"
    async with await agent.start_exec(Command(["sh", "-c", script])) as process:
        output = process.output()
        assert (await anext(output))[1] == b"ready\n"
        await process.kill(signal.SIGTERM)
        assert [data async for channel, data in output if channel is Channel.STDOUT] == [b"got it\n"]
        assert (await process.wait(timeout_s=10)).exit_code == 7
        await process.kill(signal.SIGTERM)


async def test_a_signal_there_is_not_is_refused(agent) -> None:
    async with await agent.start_exec(Command(["sleep", "60"])) as process:
        with pytest.raises(ConfigError, match="signal: 65"):
            await process.kill(65)
        with pytest.raises(GuestError):
            await agent.kill(process._exchange.stream, 65)


async def test_a_process_that_is_left_is_killed(agent) -> None:
    async with await agent.start_exec(Command(["sh", "-c", "yes"])) as process:
        await anext(process.output())
    assert (await process.wait()).exit_code == 137
    gone(process.pid)


async def test_hundreds_of_programs_run_at_once_and_files_are_read_meanwhile(agent, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"content")
    processes = await asyncio.gather(*(agent.start_exec(Command(["cat"], stdin=True)) for _ in range(300)))
    assert await agent.read_file(str(tmp_path / "f")) == b"content"
    for number, process in enumerate(processes):
        await process.write_stdin(b"%d" % number)
        await process.close_stdin()
    for number, process in enumerate(processes):
        assert [data async for _, data in process.output()] == [b"%d" % number]
    assert {(await process.wait()).exit_code for process in processes} == {0}
    await agent.exec(Command(["true"]), timeout_s=20)


async def test_a_program_has_the_limits_the_agent_was_started_with(agent) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    shown = await out(agent, "sh", "-c", "ulimit -n; ulimit -Hn")
    assert shown.replace("unlimited", "-1").split() == [str(soft), str(hard)]


async def test_more_programs_than_may_be_open_are_refused_to_who_does_not_wait(start_agent) -> None:
    """As a client would see it that does not count: ours does."""
    running = start_agent()
    async with await AgentClient.open(running.sock.dup(), protocol=PROTOCOL) as client:
        running.sock.close()
        # Their arguments, too many for a request, would come behind it, and do not. Encoded once: it takes 20 ms.
        payload = exec_request(10_000, ["x"] * 70_000)[len(encode_frame(Kind.REQUEST, 0)) :]
        for stream in range(10_001, 11_025):
            client.send(encode_frame(Kind.REQUEST, stream, payload))
        await client.ping()
        with pytest.raises(GuestError, match="too many"):
            await client.list_dir("/proc/self")


async def test_a_command_of_any_length_that_linux_takes_is_taken(agent) -> None:
    argv = ["sh", "-c", 'echo $#; printf %s "$A" | wc -c', "sh", *["x" * 100_000] * 15]
    assert await out(agent, *argv, env={"A": "y" * 120_000}) == "15\n120000\n"
    many = [str(number) for number in range(60_000)]
    assert await out(agent, "sh", "-c", "echo $#", "sh", *many) == "60000\n"
    script = f": {'x' * 131_000}\necho done"
    assert await out(agent, "sh", "-c", script) == "done\n"


@pytest.mark.parametrize(
    ("argv", "env", "said"),
    [
        (["sh", "-c", "x" * 131_072], {}, "argument 2 has 131072 bytes, Linux takes 131071 in one"),
        (["true"], {"LONG": "x" * 131_072}, "the variable LONG has 131077 bytes, Linux takes 131071 in one"),
        (["true", *["x" * 100_000] * 80], {}, "arguments and environment have .* bytes, Linux takes .* together"),
        (["true", *["x" * 100_000] * 90], {}, "arguments and environment have more than 8 MiB"),
    ],
    ids=["an argument", "a variable", "all together", "more than any Linux takes"],
)
async def test_a_command_that_is_too_long_says_what_is(agent, argv, env, said) -> None:
    with pytest.raises(ExecError, match=said) as caught:
        await agent.exec(Command(argv, env=env), timeout_s=20)
    assert caught.value.exit_code == 126
    assert "file" in caught.value.hint
    await agent.quiesce()


async def test_many_variables_do_not_hold_the_agent_up(agent) -> None:
    env = {f"V{number}": "" for number in range(50_000)}
    began = time.monotonic()
    shown = await out(agent, "sh", "-c", "env | grep -c ^V", env=env | {"PATH": "/usr/bin:/bin"})
    assert shown == "50000\n"
    assert time.monotonic() - began < 60


async def test_standard_streams_open_for_who_runs_and_who_it_becomes(agent) -> None:
    script = "echo out > /dev/stdout; echo err > /dev/stderr; cat /dev/stdin"
    status, stdout, stderr = await agent.exec(Command(["sh", "-c", script]), input=b"in\n", timeout_s=20)
    assert (status.exit_code, stdout, stderr) == (0, b"out\nin\n", b"err\n")


@as_root
@pytest.mark.parametrize("become", [[], ["setpriv", "--reuid", "nobody", "--clear-groups"]], ids=["as user", "becomes"])
async def test_standard_streams_open_for_ordinary_users(agent, become: list[str]) -> None:
    script = "echo out > /dev/stdout; echo err > /dev/stderr; cat /dev/stdin"
    argv, user = [*become, "sh", "-c", script], "" if become else "nobody"
    status, stdout, stderr = await agent.exec(Command(argv, user=user), input=b"in\n", timeout_s=20)
    assert (status.exit_code, stdout, stderr) == (0, b"out\nin\n", b"err\n")


@as_root
async def test_a_number_need_not_be_a_known_user(agent) -> None:
    shown = await out(agent, "sh", "-c", 'echo "$(id -u) $(id -g) $(id -G) $HOME $USER"', user="54321")
    assert shown.split() == ["54321", "54321", "54321", "/", "54321"]
    assert await out(agent, "id", "-u", user="0") == "0\n"
    for wrong in ("-1", "+5", " 5", "4294967295", "18446744073709551616", "5x"):
        with pytest.raises(GuestError, match="no user"):
            await agent.exec(Command(["true"], user=wrong), timeout_s=20)


@pytest.fixture
async def containing_agent(start_mounting) -> AsyncIterator[AgentClient]:
    """An agent that finds cgroup v2, whatever the host has mounted."""
    running = start_mounting("mount -t cgroup2 cgroup2 /sys/fs/cgroup")
    async with await AgentClient.open(running.sock.dup()) as client:
        running.sock.close()
        await client.hello(take_over=False, timeout_s=10)
        yield client
        assert await groups_left(client) == ""


@as_root
async def test_a_limit_of_time_ends_all_that_was_started(containing_agent, tmp_path: Path) -> None:
    script = "setsid sh -c 'echo $$; echo > {up}; exec sleep 1000' & wait"
    gone(int((await run_to_its_limit(containing_agent, script, tmp_path)).stdout))


@as_root
async def test_a_cancelled_program_with_a_limit_takes_all_it_started_with_it(containing_agent, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    script = f"setsid sh -c 'echo $$ > {pipe}; exec sleep 60' & wait"
    running = asyncio.ensure_future(containing_agent.exec(Command(["sh", "-c", script]), timeout_s=60))
    pid = int(await asyncio.to_thread(pipe.read_text))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    gone(pid)


@as_root
@pytest.mark.parametrize("limit", [None, 20])
async def test_what_a_program_leaves_when_it_ends_by_itself_runs_on(containing_agent, tmp_path: Path, limit) -> None:
    os.mkfifo(up := tmp_path / "up")
    script = f"setsid sh -c 'echo $$; echo > {up}; exec sleep 1000' & read line < {up}"
    _, stdout, _ = await containing_agent.exec(Command(["sh", "-c", script]), timeout_s=limit)
    pid = int(stdout)
    try:
        assert Path(f"/proc/{pid}/stat").read_text().split()[2] not in "ZX"
        # Not in a group of its own any more, which the next program would end with.
        assert "vmfork" not in Path(f"/proc/{pid}/cgroup").read_text()
        with pytest.raises(DeadlineExceeded):
            await containing_agent.exec(Command(["sleep", "60"]), timeout_s=0.1)
        assert Path(f"/proc/{pid}/stat").exists()
    finally:
        os.kill(pid, signal.SIGKILL)


FAMILY = {
    "the program itself": "exec {me}",
    "a session of its own": "setsid {me} & wait",
    "a group of its own": "timeout 60 {me} & wait",
    "deep below": "setsid sh -c 'setsid {me} & wait' & wait",
    "a child of one that is stopped": "setsid sh -c '{me} & kill -STOP $$' & wait",
    "without a parent, in its session": "({me} &); sleep 60",
}


@pytest.mark.parametrize("kind", FAMILY)
@pytest.mark.parametrize("end", ["cancel", "limit of output", "aclose"])
async def test_a_program_without_a_limit_takes_all_it_started_with_it(agent, tmp_path: Path, kind, end) -> None:
    pipe, me = tmp_path / "pipe", tmp_path / "me"
    os.mkfifo(pipe)
    me.write_text(f"#!/bin/sh\necho $$ > {pipe}\necho 0123456789\nexec sleep 60\n")
    me.chmod(0o755)
    command = Command(["sh", "-c", FAMILY[kind].format(me=me)])
    reading = asyncio.create_task(asyncio.to_thread(pipe.read_text))
    if end == "aclose":
        async with await agent.start_exec(command):
            pid = int(await reading)
    elif end == "cancel":
        running = asyncio.ensure_future(agent.exec(command))
        pid = int(await reading)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    else:
        with pytest.raises(LimitExceeded):
            await agent.exec(command, max_output=5)
        pid = int(await reading)
    gone(pid)


async def groups_left(agent: AgentClient) -> str:
    """Control groups that the agent did not remove, once it has seen the last process in them end.

    Only an init is told of the end of others' children; here the next program makes it look again.
    """
    end = time.monotonic() + LIMIT_S
    while True:
        _, left, _ = await agent.exec(
            Command(["sh", "-c", "ls -d /sys/fs/cgroup/vmfork-* 2>/dev/null"]), timeout_s=None
        )
        if not left or time.monotonic() > end:
            return left.decode()


async def test_descriptors_do_not_pile_up(agent) -> None:
    async def count() -> int:
        # The line it waits for comes from an agent that is done with starting it, and so closed the program's ends.
        script = "read line; ls /proc/$PPID/fd"
        _, listed, _ = await agent.exec(Command(["sh", "-c", script]), input=b"go on\n", timeout_s=20)
        return len(listed.split())

    before = await count()
    for _ in range(20):
        await agent.exec(Command(["echo", "x"]), input=b"y", timeout_s=20)
    assert await count() == before


def unchecked(argv, env: dict[str, str]) -> Command:
    """A command that the host did not check: the agent must not count on it."""
    command = Command(["x"])
    object.__setattr__(command, "argv", tuple(argv))
    object.__setattr__(command, "env", env)
    return command


@pytest.mark.parametrize("env", [{"": "x"}, {"A\0B": "x"}], ids=["no name", "zero byte"])
async def test_a_variable_that_cannot_be_is_refused(agent, env: dict[str, str]) -> None:
    with pytest.raises(GuestError, match="invalid"):
        await agent.exec(unchecked(["true"], env), timeout_s=20)


async def test_a_command_of_nothing_is_refused(agent) -> None:
    for argv in ([], [""]):
        with pytest.raises(GuestError, match="invalid"):
            await agent.exec(unchecked(argv, {}), timeout_s=20)

"""`vmfork_guest` in real Python processes, told of a new generation by a real agent."""

from __future__ import annotations

import ast
import asyncio
import os
import select
import socket
import subprocess
import sys
import textwrap
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

import vmfork.image
from tests.rules.capabilities import need
from vmfork.image.recipe import read_guest_module

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MODULE_DIR = Path(vmfork.image.__file__).with_name("python")
GENERATION = "0123456789abcdef" * 2
NEXT_GENERATION = "fedcba9876543210" * 2
LIMIT_S = 60.0
ANSWER_LIMIT_S = 30.0

# Runs what it reads, a line each, and answers with what the last expression is, as Python writes it.
PROGRAM = """
import sys
sys.path.insert(0, {module_dir!r})
import vmfork_guest
vmfork_guest._RUN = {run!r}
names = {{"vmfork_guest": vmfork_guest}}
for line in sys.stdin:
    mode, source = eval(line)
    print(repr(eval(source, names) if mode == "eval" else exec(source, names)), flush=True)
"""


class Program:
    """A Python process that does what it is told."""

    def __init__(self, run: Path, *, module_dir: Path = MODULE_DIR) -> None:
        source = PROGRAM.format(module_dir=str(module_dir), run=str(run))
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore::DeprecationWarning", "-c", source],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def run(self, source: str) -> None:
        assert self._ask("exec", textwrap.dedent(source)) is None

    def value(self, expression: str) -> object:
        return self._ask("eval", expression)

    def _ask(self, mode: str, source: str) -> object:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(repr((mode, source)) + "\n")
        readable, _, _ = select.select([self.process.stdout], [], [], ANSWER_LIMIT_S)
        assert readable, f"no answer to {source!r}"
        line = self.process.stdout.readline()
        assert line, f"the program ended over {source!r}"
        return ast.literal_eval(line)

    def end(self) -> None:
        """It runs to its end by itself."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            assert self.process.wait(timeout=ANSWER_LIMIT_S) == 0
        finally:
            self.kill()

    def kill(self) -> None:
        with self.process:
            self.process.kill()


@pytest.fixture
def run_dir(root_dir: Path) -> Path:
    """The guest's /run/vmfork, adopted."""
    path = root_dir / "run" / "vmfork"
    (path / "watchers").mkdir(parents=True)
    (path / "watchers").chmod(0o1777)
    (path / "generation").write_text(GENERATION + "\n")
    return path


@pytest.fixture
def start_program(run_dir: Path) -> Iterator[Callable[[], Program]]:
    with ExitStack() as stack:

        def start() -> Program:
            program = Program(run_dir)
            stack.callback(program.end)
            return program

        yield start


@pytest.fixture
def program(start_program) -> Program:
    """A program that watches."""
    started = start_program()
    assert started.value("vmfork_guest.watch()") is True
    return started


async def notify(agent) -> dict[int, tuple[str, str]]:
    """What each process answered."""
    outcomes = await agent.notify(LIMIT_S)
    answers = {int(item.item.partition(".")[0]): (item.outcome, item.evidence.decode()) for item in outcomes}
    assert len(answers) == len(outcomes)
    return answers


async def adopt(agent, generation: str) -> None:
    (outcome,) = await agent.adopt([("generation", generation.encode())])
    assert outcome.outcome == "ok"


def test_the_module_parses_as_the_oldest_python_it_names() -> None:
    ast.parse(read_guest_module(), feature_version=(3, 9))


def test_outside_of_a_machine_nothing_is_done(tmp_path: Path) -> None:
    program = Program(tmp_path / "none")
    try:
        assert program.value("vmfork_guest.watch(), vmfork_guest.generation()") == (False, "")
        assert program.value("__import__('threading').active_count()") == 1
        program.run("vmfork_guest.reseed()")
    finally:
        program.end()


def test_a_hosts_own_folder_of_that_name_is_no_machine(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    (closed / "generation").write_text(GENERATION)
    program = Program(closed)
    try:
        program.run("import os")
        closed.chmod(0)
        program.run("os.geteuid() or os.seteuid(65534)")
        assert program.value("vmfork_guest.watch(), vmfork_guest.generation()") == (False, "")
    finally:
        closed.chmod(0o700)
        program.end()


async def test_a_program_watches_once_and_leaves_no_name_behind(agent, start_program, run_dir: Path) -> None:
    program = start_program()
    assert program.value("[vmfork_guest.watch() for _ in range(3)]") == [True, True, True]
    assert program.value("vmfork_guest.generation()") == GENERATION
    assert await notify(agent) == {program.pid: ("ok", GENERATION)}
    (path,) = (run_dir / "watchers").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    program.end()
    assert list((run_dir / "watchers").iterdir()) == []


async def test_the_generators_of_the_standard_library_draw_something_else(agent, program) -> None:
    program.run(
        """
        import random, tempfile, uuid
        random.seed(7)
        names = tempfile._get_candidate_names()
        names.rng.seed(7)
        before = uuid.uuid1(), uuid.getnode()
        uuid._last_timestamp = 1 << 60
        """
    )
    # That they would have drawn the same is not taken on trust.
    assert program.value("(random.random(), random.seed(7))[0]") == Random(7).random()
    candidate = program.value("(next(names), names.rng.seed(7))[0]")
    await notify(agent)
    assert program.value("random.random()") != Random(7).random()
    assert program.value("next(tempfile._get_candidate_names())") != candidate
    program.run("after = uuid.uuid1(), uuid.getnode()")
    assert program.value("before[0].node == after[0].node or before[1] == after[1]") is False
    assert program.value("after[0].node == after[1] and after[1] >> 40 & 1 and after[1] < 1 << 48") is True
    assert program.value("uuid._last_timestamp < 1 << 60") is True


async def test_the_legacy_generator_of_numpy_draws_something_else(agent, program) -> None:
    need("numpy", found=program.value("__import__('importlib.util').util.find_spec('numpy') is not None"))
    program.run("import numpy; numpy.random.seed(7)")
    before = program.value("(float(numpy.random.rand()), numpy.random.seed(7))[0]")
    assert program.value("(float(numpy.random.rand()), numpy.random.seed(7))[0]") == before
    assert await notify(agent) == {program.pid: ("ok", GENERATION)}
    assert program.value("float(numpy.random.rand())") != before


# How often a thread's own generator was seeded, from the library that `ssl` uses; `pump` draws in one thread for ever.
OPENSSL = """
import ctypes, queue, ssl, threading
maps = [line.split()[-1] for line in open("/proc/self/maps") if "libcrypto" in line or "/_ssl." in line]
crypto = ctypes.CDLL(next((path for path in maps if "libcrypto" in path), maps[0]))
class Param(ctypes.Structure):
    _fields_ = [("key", ctypes.c_char_p), ("type", ctypes.c_uint), ("data", ctypes.c_void_p),
                ("size", ctypes.c_size_t), ("returned", ctypes.c_size_t)]
for name in ("RAND_get0_public", "RAND_get0_private", "RAND_get0_primary"):
    getattr(crypto, name).restype = ctypes.c_void_p
    getattr(crypto, name).argtypes = [ctypes.c_void_p]
crypto.EVP_RAND_CTX_get_params.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
def count(name):
    number = ctypes.c_uint(0)
    params = (Param * 2)(Param(b"reseed_counter", 2, ctypes.addressof(number), 4, 0), Param())
    assert crypto.EVP_RAND_CTX_get_params(getattr(crypto, name)(None), params) == 1
    return number.value
def draw():
    ssl.RAND_bytes(16)
    crypto.RAND_priv_bytes(ctypes.create_string_buffer(16), 16)
    return [count(name) for name in ("RAND_get0_public", "RAND_get0_private", "RAND_get0_primary")]
asked, answered = queue.Queue(), queue.Queue()
def pump():
    while asked.get():
        answered.put(draw())
threading.Thread(target=pump, daemon=True).start()
def draw_in_thread():
    asked.put(True)
    return answered.get()
"""


async def test_openssls_generators_of_all_threads_are_seeded_anew(agent, program) -> None:
    need("openssl-3", found=program.value("__import__('ssl').OPENSSL_VERSION_INFO >= (3,)"))
    program.run(OPENSSL)
    before = program.value("draw() + draw_in_thread()")
    assert program.value("draw() + draw_in_thread()") == before
    assert await notify(agent) == {program.pid: ("ok", GENERATION)}
    after = program.value("draw() + draw_in_thread()")
    assert isinstance(before, list)
    assert isinstance(after, list)
    assert all(now > then for now, then in zip(after, before, strict=True)), (before, after)


async def test_callbacks_are_called_last_in_their_order(agent, program) -> None:
    program.run(
        """
        import random
        calls = []
        @vmfork_guest.on_fork
        def first(generation):
            calls.append(("first", generation, random.getstate() != state))
        vmfork_guest.on_fork(lambda generation: calls.append(("second", generation)))
        state = random.getstate()
        """
    )
    await adopt(agent, NEXT_GENERATION)
    assert await notify(agent) == {program.pid: ("ok", NEXT_GENERATION)}
    assert program.value("calls") == [("first", NEXT_GENERATION, True), ("second", NEXT_GENERATION)]
    assert program.value("first.__name__") == "first"


@pytest.mark.parametrize(
    ("failing", "told"),
    [
        ("raise ValueError('no key')", "renew: ValueError: no key"),
        ("raise SystemExit(3)", "3"),
        ("raise ValueError('\\u00e9' * 5000)", "renew: ValueError: " + "é" * ((500 - 19) // 2)),
    ],
)
async def test_a_callback_that_fails_is_answered_and_the_next_time_it_may_succeed(
    agent, program, failing: str, told: str
) -> None:
    program.run(
        f"""
        fails = True
        @vmfork_guest.on_fork
        def renew(generation):
            if fails:
                {failing}
        """
    )
    answers = await notify(agent)
    assert answers == {program.pid: ("failed", told)}
    program.run("fails = False")
    assert await notify(agent) == {program.pid: ("ok", GENERATION)}


async def test_a_module_that_cannot_be_reseeded_is_named(agent, program) -> None:
    program.run("import sys, types; sys.modules['numpy.random'] = types.ModuleType('numpy.random')")
    (answer,) = (await notify(agent)).values()
    assert answer[0] == "failed"
    assert answer[1].startswith("numpy.random: AttributeError: ")


async def test_a_program_that_is_busy_with_its_callback_is_silent(agent, program) -> None:
    program.run(
        """
        import threading
        go_on = threading.Event()
        vmfork_guest.on_fork(lambda generation: go_on.wait())
        """
    )
    (outcome,) = await agent.notify(0.2)
    assert outcome.outcome == "timeout"
    program.run("go_on.set()")
    assert await notify(agent) == {program.pid: ("ok", GENERATION)}


# `fork` gives the pid of a child that waits, and `end` lets it go; a child reports through a pipe.
FORK = """
import os, random
def fork(report):
    ends, reports = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ends[1])
        os.write(reports[1], repr(report()).encode())
        os.read(ends[0], 1)
        os._exit(0)
    os.close(ends[0]); os.close(reports[1])
    told = eval(os.read(reports[0], 10000))
    os.close(reports[0])
    return pid, ends[1], told
def end(child):
    os.close(child[1])
    return os.waitpid(child[0], 0)[1]
"""


async def test_children_are_told_on_their_own(agent, program, run_dir: Path) -> None:
    program.run(FORK + "child = fork(lambda: vmfork_guest.watch())")
    child = program.value("child[0]")
    assert program.value("child[2]") is True
    assert await notify(agent) == {program.pid: ("ok", GENERATION), child: ("ok", GENERATION)}
    assert program.value("end(child)") == 0
    # It ended without taking its name back, which the agent does.
    assert len(list((run_dir / "watchers").iterdir())) == 2
    assert await notify(agent) == {program.pid: ("ok", GENERATION)}
    assert len(list((run_dir / "watchers").iterdir())) == 1


async def test_a_parent_that_ended_does_not_live_on_in_its_child(agent, run_dir: Path, tmp_path: Path) -> None:
    end = tmp_path / "end"
    os.mkfifo(end)
    # The child reads until this is closed.
    held = os.open(end, os.O_RDWR)
    program = Program(run_dir)
    try:
        program.run(
            f"""
            import os
            vmfork_guest.watch()
            registered = os.pipe()
            child = os.fork()
            if child == 0:
                with open({str(end)!r}) as end:
                    os.write(registered[1], b"x")
                    end.read()
                os._exit(0)
            os.read(registered[0], 1)
            """
        )
        child = program.value("child")
        assert await notify(agent) == {program.pid: ("ok", GENERATION), child: ("ok", GENERATION)}
        program.kill()
        assert await notify(agent) == {child: ("ok", GENERATION)}
    finally:
        program.kill()
        os.close(held)


async def test_a_child_made_before_its_parent_was_told_catches_up(agent, program) -> None:
    program.run(
        FORK
        + textwrap.dedent(
            """
            calls = []
            vmfork_guest.on_fork(calls.append)
            state = random.getstate()
            same = fork(lambda: (calls, vmfork_guest.generation()))
            """
        )
    )
    assert program.value("same[2]") == ([], GENERATION)
    await adopt(agent, NEXT_GENERATION)
    program.run("late = fork(lambda: (calls, random.getstate() != state))")
    assert program.value("late[2]") == ([NEXT_GENERATION], True)
    answers = await notify(agent)
    assert set(answers.values()) == {("ok", NEXT_GENERATION)}
    assert answers.keys() == {program.pid, program.value("same[0]"), program.value("late[0]")}
    assert program.value("end(late), end(same)") == (0, 0)


async def test_a_callback_that_forks_is_not_called_by_its_child(agent, program) -> None:
    program.run(
        FORK
        + textwrap.dedent(
            """
            children = []
            vmfork_guest.on_fork(lambda generation: children.append(fork(lambda: len(children))))
            """
        )
    )
    await adopt(agent, NEXT_GENERATION)
    answers = await notify(agent)
    assert answers[program.pid] == ("ok", NEXT_GENERATION)
    assert program.value("[child[2] for child in children]") == [0]
    assert program.value("[end(child) for child in children]") == [0]


def test_names_of_ended_processes_are_removed_once_they_are_many(start_program, run_dir: Path) -> None:
    folder = run_dir / "watchers"
    for number in range(80):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
            dead.bind(str(folder / f"{number}.dead"))
    (folder / "file").touch()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as live:
        live.bind(str(folder / "1.live"))
        program = start_program()
        assert program.value("vmfork_guest.watch()") is True
    names = {path.name for path in folder.iterdir()}
    assert {"file", "1.live"} < names
    assert len(names) == 3


def test_a_signal_that_the_program_waits_for_does_not_end_up_in_the_watcher(program) -> None:
    program.run(
        """
        import os, signal
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        os.kill(os.getpid(), signal.SIGUSR1)
        """
    )
    assert program.value("int(signal.sigwait([signal.SIGUSR1]))") == 10


async def test_two_programs_that_were_alike_are_no_more(agent, start_program) -> None:
    programs = [start_program() for _ in range(2)]
    for program in programs:
        program.run("import random; vmfork_guest.watch(); random.seed(7)")
    answers = await notify(agent)
    assert answers == {program.pid: ("ok", GENERATION) for program in programs}
    draws = await asyncio.gather(*(asyncio.to_thread(program.value, "random.random()") for program in programs))
    assert len({*draws, Random(7).random()}) == 3


def test_the_module_has_no_other_names_than_it_says() -> None:
    tree = ast.parse(read_guest_module())
    public = {
        node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) if node.name[0] != "_"
    }
    asks = {"fork", "wait", "exit", "Ended", "ForkError"}
    assert public == {"watch", "on_fork", "generation", "reseed"} | asks


class Host:
    """Answers what one program asks, as it is told to."""

    def __init__(self, agent) -> None:
        self._agent = agent
        self._told: asyncio.Queue = asyncio.Queue()

    async def begin(self) -> None:
        self._serving = await self._agent.serve(self._told.put_nowait)

    async def answers(self, *answers: bytes) -> list[bytes]:
        """What was asked, of which each got the next answer."""
        questions = []
        for answer in answers:
            asked = await asyncio.wait_for(self._told.get(), ANSWER_LIMIT_S)
            questions.append(asked.question)
            self._serving.answered(asked.number)
            assert await self._agent.answer(asked.number, answer)
        return questions

    async def gone(self) -> int:
        asked = await asyncio.wait_for(self._told.get(), ANSWER_LIMIT_S)
        assert asked.question is None
        return asked.number


@pytest.fixture
async def host(agent, run_dir) -> Host:
    host = Host(agent)
    await host.begin()
    return host


async def test_a_fork_is_asked_for_and_its_end_waited_for(host, program) -> None:
    asking = asyncio.to_thread(program.value, "vmfork_guest.fork(2), tuple(vmfork_guest.wait(1.5))")
    answered = host.answers(b"forked 0", b"ended 2 abc 7 two words")
    value, questions = await asyncio.gather(asking, answered)
    assert value == (0, (2, "abc", 7, "two words"))
    assert questions == [b"fork 2", b"wait 1500"]
    asking = asyncio.to_thread(program.value, "tuple(vmfork_guest.wait())")
    value, questions = await asyncio.gather(asking, host.answers(b"ended 1 def  its machine ended"))
    assert (value, questions) == ((1, "def", None, "its machine ended"), [b"wait "])


async def test_a_fork_draws_other_random_numbers_than_the_one_it_came_from(host, start_program) -> None:
    """Whether it watches or not: this one does not."""
    drawn, program = [], start_program()
    for answer in (b"forked 0", b"forked 1"):
        source = "__import__('random').seed(7), vmfork_guest.fork(), __import__('random').random()"
        value, _ = await asyncio.gather(asyncio.to_thread(program.value, source), host.answers(answer))
        assert value[1] == int(answer[-1:])
        drawn.append(value[2])
    assert drawn[0] == Random(7).random()
    assert drawn[1] != drawn[0]


@pytest.mark.parametrize(
    ("call", "answer", "said"),
    [
        ("fork()", b"refused limit 3 machines may live", ("ForkError", "limit", "3 machines may live")),
        ("fork()", b"refused no-room the host has none", ("ForkError", "no-room", "the host has none")),
        ("fork()", b"nonsense", ("ForkError", "failed", "the host answered 'nonsense'")),
        ("exit(3, 'x')", b"refused not-allowed no", ("ForkError", "not-allowed", "no")),
        (
            "wait()",
            b"none",
            ("ChildProcessError", "", "[Errno 10] this process made no machine that it was not told of"),
        ),
        ("wait(2)", b"silent", ("TimeoutError", "", "no machine ended within 2 s")),
    ],
)
async def test_what_the_host_refuses_is_an_error_with_the_reason(host, program, call, answer, said) -> None:
    program.run(
        f"""
        def attempt():
            try:
                vmfork_guest.{call}
            except Exception as error:
                return type(error).__name__, getattr(error, "reason", ""), str(error)
        """
    )
    value, _ = await asyncio.gather(asyncio.to_thread(program.value, "attempt()"), host.answers(answer))
    assert value == said


def test_what_cannot_be_said_is_not_asked(program) -> None:
    program.run(
        """
        def attempt(*arguments):
            try:
                vmfork_guest.exit(*arguments)
            except ValueError as error:
                return str(error)
        """
    )
    assert program.value("attempt(256)") == "an exit status is 0 to 255, not 256"
    assert program.value("attempt(0, 'x' * 3001)") == "a message has 3000 bytes at most, not 3001"


def test_where_nobody_answers_it_is_not_allowed(program) -> None:
    program.run(
        """
        def attempt(call):
            try:
                call()
            except vmfork_guest.ForkError as error:
                return error.reason
        """
    )
    for name in ("fork", "wait", "exit"):
        assert program.value(f"attempt(vmfork_guest.{name})") == "not-allowed"


async def test_a_child_of_os_fork_asks_for_itself(host, program) -> None:
    """What its parent made is its parent's."""
    await asyncio.gather(asyncio.to_thread(program.value, "vmfork_guest.fork()"), host.answers(b"forked 0"))
    source = """
        import os
        def attempt():
            pid = os.fork()
            if pid == 0:
                try:
                    vmfork_guest.wait()
                except ChildProcessError:
                    os._exit(9)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        """
    program.run(source)
    value, questions = await asyncio.gather(asyncio.to_thread(program.value, "attempt()"), host.answers(b"none"))
    assert (value, questions) == (9, [b"wait "])
    # The child's way is gone with it, and its parent's is not.
    await host.gone()
    asking = asyncio.to_thread(program.value, "vmfork_guest.fork()")
    assert await asyncio.gather(asking, host.answers(b"forked 0")) == [0, [b"fork 1"]]

"""Code in one call: what it gives, what stays, and what code may do to its interpreter without harm to anyone."""

from __future__ import annotations

import ast
import asyncio

import pytest

from tests.vm.cli_runner import vmfork
from tests.vm.least import boots_in_its_least
from vmfork.aio import VM, CodeError, ConfigError, DeadlineExceeded, LimitExceeded, Template
from vmfork.config import VMConfig

pytestmark = pytest.mark.vm

WARM = "warm-code"
# Of a busy machine, which translates what it runs for the first time.
LIMIT_S = 120


@pytest.fixture(scope="module")
def warm_name(instance):
    """A template that was frozen with two interpreters."""
    steps = ["#!python\nimport random\nwarm = 'warm'\nrandom.random()", "#!bash\nX=warm"]
    template = asyncio.run(Template.build(WARM, VMConfig(), warm_up=steps))
    yield WARM
    asyncio.run(template.remove())


@pytest.fixture
async def warm(warm_name):
    async with (await Template.open(warm_name)).fork() as vm:
        yield vm


async def run(vm: VM, code: str, language: str = "python", **options):
    return await vm.run_code(code, language, timeout_s=LIMIT_S, **options)


async def test_a_call_gives_what_code_wrote_and_its_value_and_its_state_stays(any_vm) -> None:
    done = await run(any_vm, "import sys\nx = 20\nprint('out')\nprint('err', file=sys.stderr)\nx + 1")
    assert (done.stdout, done.stderr, done.value, done.error) == ("out\n", "err\n", "21", None)
    assert (await run(any_vm, "x * 2")).value == "40"
    assert (await run(any_vm, "x = 1")).value is None
    # Each context has a state of its own, and loses it at a restart.
    assert (await run(any_vm, "x", context="other")).error.type == "NameError"
    assert (await run(any_vm, "x")).value == "1"
    restarted = await run(any_vm, "x", restart=True)
    assert restarted.error.type == "NameError"
    assert "code 1" in restarted.error.traceback
    assert "vmfork" not in restarted.error.traceback
    with pytest.raises(CodeError, match="ZeroDivisionError: division by zero"):
        await run(any_vm, "1 / 0", check=True)


async def test_what_code_shows_comes_as_a_notebook_has_it(warm) -> None:
    code = """
class Shown:
    def _repr_html_(self): return "<b>it</b>"
    def _repr_png_(self): return b"\\x89PNG"
    def _repr_json_(self): return {"it": [1]}
    def _repr_svg_(self): return "<svg/>"
    def __repr__(self): return "it"
display("first")
Shown()
"""
    done = await run(warm, code)
    first, second = done.results
    assert first.text == "'first'"
    assert (second.text, second.html, second.svg) == ("it", "<b>it</b>", "<svg/>")
    assert (second.png, second.json, done.value) == (b"\x89PNG", {"it": [1]}, "it")


async def test_files_that_code_makes_are_given_when_they_are_asked_for(warm) -> None:
    await warm.make_dir("/root/out/deep", parents=True)
    await warm.write_file("/root/out/old", b"old")
    code = "open('/root/out/deep/new', 'w').write('new'); open('/root/elsewhere', 'w').close()"
    done = await run(warm, code, made_in="/root/out")
    assert done.files == {"/root/out/deep/new": b"new"}
    assert (await run(warm, "1", made_in="/root/none")).files == {}


async def test_output_is_told_as_it_comes(warm) -> None:
    told: asyncio.Queue[str] = asyncio.Queue()
    code = "print('begun é', flush=True)\nimport os\nopen('/root/go').read()\nprint('over')"
    await warm.exec(["mkfifo", "/root/go"], check=True)
    call = asyncio.create_task(run(warm, code, on_stdout=told.put_nowait))
    assert await asyncio.wait_for(told.get(), LIMIT_S) == "begun é\n"
    assert not call.done()
    await warm.shell("echo > /root/go", timeout_s=LIMIT_S, check=True)
    done = await call
    assert (told.get_nowait(), done.stdout) == ("over\n", "")


async def test_code_that_closes_its_streams_and_code_that_forks_confuse_nobody(warm) -> None:
    closing = "import os, sys\nfor fd in 0, 1, 2: os.close(fd)\nsys.stdout = None"
    assert (await run(warm, closing)).error is None
    assert (await run(warm, "print('still here')")).stdout == "still here\n"
    forking = "child = os.fork()\nif child: os.wait()\nprint('parent' if child else 'child')\nchild and 7"
    done = await run(warm, forking)
    assert (done.stdout, done.value) == ("child\nparent\n", "7")
    # It raises in the child alone, and what a child leaves running writes into no later call.
    done = await run(warm, "child = os.fork()\nif not child: 1 / 0\nos.waitstatus_to_exitcode(os.wait()[1])")
    assert (done.value, done.error) == ("1", None)
    everything = await run(warm, "x = 5\nos.closerange(0, 10_000)")
    assert (everything.error.type, everything.is_state_lost) == ("InterpreterEnded", True)
    assert (await run(warm, "2 + 2")).value == "4"


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("import os; print('last', flush=True); os._exit(3)", "exited with status 3"),
        ("import ctypes; print('last', flush=True); ctypes.string_at(0)", "ended by SIGSEGV"),
        ("import os, signal; print('last', flush=True); os.kill(0, signal.SIGKILL)", "ended by SIGKILL"),
    ],
)
async def test_an_interpreter_that_ends_is_told_and_the_next_call_has_another(warm, code, how) -> None:
    done = await run(warm, f"x = 1\n{code}")
    assert (done.stdout, done.error.type, done.is_state_lost) == ("last\n", "InterpreterEnded", True)
    assert how in done.error.message
    assert (await run(warm, "x")).error.type == "NameError"


async def test_sys_exit_is_an_error_and_the_state_stays(warm) -> None:
    done = await run(warm, "x = 1\nexit(3)")
    assert (done.error.type, done.error.message, done.is_state_lost) == ("SystemExit", "3", False)
    assert (await run(warm, "x")).value == "1"


async def test_a_time_limit_interrupts_code_and_then_kills_its_interpreter(warm) -> None:
    await run(warm, "x = 1")
    with pytest.raises(DeadlineExceeded) as late:
        await warm.run_code("print('begun', flush=True)\nwhile True: pass", timeout_s=1, grace_s=LIMIT_S)
    # On a busy host it may not have begun.
    assert b"begun\n".startswith(late.value.stdout)
    assert "lost" not in late.value.hint
    assert (await run(warm, "x")).value == "1"
    await run(warm, "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])")
    with pytest.raises(DeadlineExceeded) as late:
        await warm.run_code("while True: pass", timeout_s=1, grace_s=0.2)
    assert "its state is lost" in late.value.hint
    assert (await run(warm, "x")).error.type == "NameError"


async def test_a_call_that_is_cancelled_ends_and_the_context_goes_on(warm) -> None:
    told: asyncio.Queue[str] = asyncio.Queue()
    code = "x = 1\nprint('begun', flush=True)\nwhile True: pass"
    call = asyncio.create_task(warm.run_code(code, on_stdout=told.put_nowait))
    await asyncio.wait_for(told.get(), LIMIT_S)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert (await run(warm, "x")).value == "1"


async def test_calls_to_one_context_wait_and_others_do_not(warm) -> None:
    await warm.exec(["mkfifo", "/root/go"], check=True)
    told: asyncio.Queue[str] = asyncio.Queue()
    code = "print('begun')\nopen('/root/go').read(); x = 2"
    first = asyncio.create_task(run(warm, code, on_stdout=told.put_nowait))
    await asyncio.wait_for(told.get(), LIMIT_S)
    with pytest.raises(DeadlineExceeded):
        # It waits behind the first, and is given up there.
        await warm.run_code("x = 3", timeout_s=1)
    assert (await run(warm, "'free'", context="other")).value == "'free'"
    await warm.shell("echo > /root/go", timeout_s=LIMIT_S, check=True)
    await first
    assert (await run(warm, "x")).value == "2"


@pytest.mark.parametrize("size_mib", [10, pytest.param(100, marks=pytest.mark.slow)])
async def test_code_that_prints_much_is_streamed_and_more_than_is_taken_is_an_error(warm, size_mib) -> None:
    size = 0

    def tell(text: str) -> None:
        nonlocal size
        size += len(text)

    done = await run(warm, f"line = 'x' * 1_048_575\nfor _ in range({size_mib}): print(line)", on_stdout=tell)
    assert (size, done.stdout, done.error) == (size_mib << 20, "", None)
    with pytest.raises(LimitExceeded) as much:
        await run(warm, "while True: print(line)", max_output=1 << 20)
    assert len(much.value.stdout) == 1 << 20
    assert (await run(warm, "len(line)")).value == "1048575"


async def test_shells_keep_their_state_and_their_status_is_the_value(warm) -> None:
    for shell in "bash", "sh":
        await run(warm, "cd /usr; X=5", shell)
        done = await run(warm, "pwd; echo $X; false", shell)
        assert (done.stdout, done.value, done.error.type) == ("/usr\n5\n", "1", "ExitStatus")
        assert (await run(warm, "if", shell)).error.type == "ExitStatus"
        assert (await run(warm, "echo $X", shell)).stdout == "5\n"
        ended = await run(warm, "exit 7", shell)
        assert "status 7" in ended.error.message
        with pytest.raises(DeadlineExceeded):
            await warm.run_code("echo begun; sleep 1000", shell, timeout_s=1, grace_s=5)
        assert (await run(warm, "echo again $X", shell)).stdout == "again\n"


async def test_what_cannot_be_run_is_refused_by_name(warm) -> None:
    for code, options in (("\udcff", {}), ("1", {"language": "cobol"}), ("1", {"made_in": "relative"})):
        with pytest.raises(ConfigError):
            await warm.run_code(code, **options)
    missing = await run(warm, "1", "javascript")
    assert (missing.error.type, missing.error.message) == ("NotInstalled", "the machine has no node")
    assert (await run(warm, "'\\x00'")).value == "'\\x00'"
    assert (await run(warm, "x = '\0'")).error.type in ("SyntaxError", "ValueError")


async def test_forks_of_a_warm_interpreter_have_its_state_and_numbers_of_their_own(warm_name) -> None:
    template = await Template.open(warm_name)
    async with template.fork(env={"GIVEN": "one"}) as one, template.fork() as two:
        draws = "import os\n[warm, os.environ.get('GIVEN'), random.random()]"
        first, second = [ast.literal_eval((await run(vm, draws)).value) for vm in (one, two)]
        assert (first[:2], second[:2]) == (["warm", "one"], ["warm", None])
        assert first[2] != second[2]
        shells = [(await run(vm, "echo $X $GIVEN $RANDOM $RANDOM", "bash")).stdout.split() for vm in (one, two)]
        assert (shells[0][:2], shells[1][:1]) == (["warm", "one"], ["warm"])
        assert shells[0][2:] != shells[1][1:]
        # And so does a fork of a machine that runs.
        await run(one, "later = 'later'")
        async with (await one.fork())[0] as three:
            third = ast.literal_eval((await run(three, "[later, random.random()]")).value)
        assert third[0] == "later"
        assert third[1] != ast.literal_eval((await run(one, "random.random()")).value)


async def test_clients_of_one_machine_find_the_same_interpreter(warm_name) -> None:
    template = await Template.open(warm_name)
    async with template.start(env={"GIVEN": "yes"}, ttl_s=600) as ours:
        try:
            async with VM.connect(ours.id) as other:
                await run(ours, "x = warm + '!'")
                assert (await run(other, "import os\n[x, os.environ['GIVEN']]")).value == "['warm!', 'yes']"
        finally:
            await ours.stop(grace_s=0)


@pytest.mark.slow
async def test_a_warm_up_in_code_that_fails_is_told_with_its_traceback(template_name) -> None:
    with pytest.raises(CodeError, match=r"ModuleNotFoundError.*no_such_module") as failed:
        await Template.build("cold-code", VMConfig(), warm_up=["#!python\nimport no_such_module"])
    assert "line 1" in failed.value.details()


@pytest.fixture
def node_name(instance):
    """A template with a warm Node.js."""
    vmfork("image", "build", "node-code", "--package", "nodejs", limit_s=900).check()
    config = VMConfig(image="node-code", memory_mib=1024)
    template = asyncio.run(Template.build("node-code", config, warm_up=["#!javascript\nlet warm = 'warm'"]))
    yield "node-code"
    asyncio.run(template.remove())
    vmfork("image", "rm", "node-code").check()


@pytest.mark.slow
@pytest.mark.limit_s(1500)
@pytest.mark.needs("mmdebstrap")
async def test_javascript_keeps_its_state_in_a_machine_and_begins_anew_in_a_fork(node_name, instance) -> None:
    await boots_in_its_least("node-code", instance)
    template = await Template.open(node_name)
    async with template.fork(env={"GIVEN": "one"}) as one, template.fork() as two:
        draws = [(await run(vm, "Math.random()", "javascript")).value for vm in (one, two)]
        assert draws[0] != draws[1]
        assert (await run(one, "warm", "javascript")).error.type == "ReferenceError"
        done = await run(one, "let x = 5; console.log('out'); process.env.GIVEN + x", "javascript")
        assert (done.stdout, done.value) == ("out\n", "'one5'")
        assert (await run(one, "await_it = Promise.resolve(x + 1)", "javascript")).value == "6"
        assert (await run(one, "throw new TypeError('no')", "javascript")).error.message == "no"
        with pytest.raises(DeadlineExceeded, match="the code"):
            await one.run_code("while (true) {}", "javascript", timeout_s=1, grace_s=LIMIT_S)
        assert (await run(one, "typeof x", "javascript")).value == "'undefined'"
        assert (await run(one, "echo $GIVEN", "sh")).stdout == "one\n"

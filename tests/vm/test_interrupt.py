"""Signals in every phase of the command line: the documented status, no traceback, and nothing left."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.timing import wait_until
from tests.vm.cli_runner import COMMAND, Outcome, Running, left_of, processes_of, vmfork

pytestmark = pytest.mark.vm

INT, TERM = signal.SIGINT, signal.SIGTERM


@pytest.fixture(autouse=True)
def nothing_is_left(instance):
    yield
    assert left_of(instance.runtime) == []


# Stands still once it has told the step that is its first argument, so that a signal finds it there.
AT_STEP = """
import os, signal, sys
import vmfork.__main__ as it
from vmfork.cli import show

step = sys.argv.pop(1)
tell = show._Lines.__call__

def tell_and_wait(self, event):
    tell(self, event)
    if f"{event.task}: {event.step}".startswith(step):
        show._Lines.__call__ = tell
        os.kill(os.getpid(), signal.SIGSTOP)

show._Lines.__call__ = tell_and_wait
sys.exit(it.main())
"""


def check_interrupted(done: Outcome, number: signal.Signals) -> None:
    assert done.status == 128 + number, done
    assert f"interrupted by {number.name}" in done.err


def interrupt_at(running: Running, text: str, number: signal.Signals) -> None:
    """The command wrote `text`, got the signal, and ended as one that was interrupted does."""
    running.wait_for(text, fd=1)
    running.interrupt(number)
    check_interrupted(running.end(), number)


def interrupt_in(step: str, number: signal.Signals, *argv: str, **options) -> None:
    """The command got the signal in that step, and ended as one that was interrupted does."""
    with Running(*argv, command=(sys.executable, "-c", AT_STEP, step), **options) as running:
        os.waitid(os.P_PID, running.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        running.interrupt(number)
        running.process.send_signal(signal.SIGCONT)
        check_interrupted(running.end(), number)


@pytest.mark.parametrize("number", [INT, TERM])
def test_while_a_command_runs(template_name, number) -> None:
    with Running("run", "-t", template_name, "sh", "-c", "echo up; sleep 60") as running:
        interrupt_at(running, "up", number)


@pytest.mark.parametrize("step", ["forking", "comparing urandom"])
def test_while_a_template_is_audited(template_name, step) -> None:
    interrupt_in(f"audit: {step}", INT, "template", "audit", template_name, "-n", "3")


def test_while_input_streams(template_name) -> None:
    read, write = os.pipe()
    with Running("run", "-t", template_name, "sh", "-c", "head -c 10; sleep 60", stdin=read) as running:
        os.close(read)
        os.write(write, b"0123456789" * 6000)
        interrupt_at(running, "0123456789", INT)
    os.close(write)


def test_a_hangup_ends_a_run_unless_it_is_ignored(template_name) -> None:
    script = "echo up; read line; echo $line"
    hearing = ("env", "--default-signal=HUP", *COMMAND)  # whoever runs the tests may ignore it, as nohup does
    with Running("run", "-t", template_name, "sh", "-c", script, command=hearing, stdin=subprocess.PIPE) as running:
        interrupt_at(running, "up", signal.SIGHUP)
    nohup = ("nohup", sys.executable, "-m", "vmfork")
    with Running("run", "-t", template_name, "sh", "-c", script, command=nohup, stdin=subprocess.PIPE) as running:
        running.wait_for("up", fd=1)
        running.interrupt(signal.SIGHUP)
        assert running.end(input=b"on\n").check().out == "up\non\n"


def test_while_templates_are_built(instance, template_name, tmp_path) -> None:
    file = tmp_path / "vmfork.toml"
    file.write_text('[factory]\ntemplate = true\ntemplate_name = "cut-init"\n')
    cases = (
        ("template: booting", TERM, "template", "build", "cut-boot"),
        ("template: booting", INT, "factory", "init", "--config", str(file)),
        ("template: running 'sleep 60'", INT, "template", "build", "cut-warm", "--run", "sleep 60"),
        ("template: freezing", INT, "template", "build", "cut-freeze"),
        ("template: recording", TERM, "template", "build", "cut-record"),
    )
    before = {*instance.templates.iterdir()}
    with ThreadPoolExecutor(3) as pool:
        for end in [pool.submit(interrupt_in, *case) for case in cases]:
            end.result()
    assert {*instance.templates.iterdir()} == before


@pytest.mark.parametrize(("step", "number"), [("image: ", INT), ("image: unpacking packages", TERM)])
@pytest.mark.needs("mmdebstrap")
def test_while_the_image_is_built(tmp_path, instance, step, number) -> None:
    env = {"VMFORK_HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path)}
    interrupt_in(step, number, "run", "true", env=env)
    # A lock stays: were it removed, two builds could hold one each. What the emulator was built with is known for good.
    kept = ("locks", "emulators")
    assert [path for path in tmp_path.rglob("*") if not path.is_dir() and path.parent.name not in kept] == []
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
    assert processes_of(instance.runtime) == []


# Prints when the interpreter is up, since what a signal does before that is Python's own affair.
AT_ANY_TIME = "import os, sys, vmfork.__main__ as it; os.write(2, b'up\\n'); sys.exit(it.main())"
SEED = 20


@pytest.fixture(scope="module")
def usual_s(template_name) -> float:
    """How long a short run takes here, now."""
    begin = time.monotonic()
    vmfork("run", "-t", template_name, "true").check()
    return time.monotonic() - begin


@pytest.mark.parametrize("fraction", [random.Random(SEED + n).random() for n in range(10)])
def test_at_any_time(template_name, usual_s, fraction) -> None:
    command = (sys.executable, "-c", AT_ANY_TIME)
    with Running("run", "-t", template_name, "sleep", "60", command=command) as running:
        running.wait_for("up\n")
        # An offset into the run, not a wait for something: the one place where time itself is what is tried.
        time.sleep(0.005 + fraction * usual_s)
        running.interrupt(INT)
        done = running.end()
    # Before it owns anything the command dies of the signal itself, which a shell shows as 130 too.
    assert done.status in {128 + INT, -INT}, done


@pytest.mark.qemu
def test_a_killed_command_takes_its_machine_along_and_the_next_sweeps(instance, template_name) -> None:
    with Running("run", "-t", template_name, "sh", "-c", "echo up; sleep 60") as running:
        running.wait_for("up", fd=1)
        assert any("qemu" in line for line in processes_of(instance.runtime))
        running.process.kill()
        running.end()
    wait_until(lambda: processes_of(instance.runtime) == [])  # no children of ours, which could be waited for
    assert len(list(instance.vms.iterdir())) == 1
    vmfork("run", "-t", template_name, "true").check()
    assert list(instance.vms.iterdir()) == []


def test_a_killed_build_is_swept_by_the_next_command(instance, template_name) -> None:
    with Running("template", "build", "killed") as running:
        running.wait_for("booting")
        running.process.kill()
        running.end()
    assert (instance.templates / "killed").exists()
    assert "killed" not in vmfork("template", "ls").check().out
    assert not (instance.templates / "killed").exists()
    wait_until(lambda: processes_of(instance.runtime) == [])
    vmfork("run", "-t", template_name, "true").check()

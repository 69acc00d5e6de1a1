"""The host's wall clock jumps by an hour, either way: what lives goes on living, and a fork has the clock of now.

A process of the test's has such a clock, and the commands that look at its machines too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.stepped_clock import HOUR_S, SteppedClock
from tests.vm.cli_runner import vmfork as command

pytestmark = [pytest.mark.vm, pytest.mark.needs("wheels")]

LIMIT_S = 120
TTL_S = 900
# It owns a machine, shares one, gives one up and takes it again, and forks; in between it says so and waits.
OWNER = f"""
import sys, time
import vmfork

def wait():
    print("waits", flush=True)
    assert sys.stdin.readline()

def check_clock(vm):
    before = time.time()
    now = float(vm.shell("date +%s.%N", check=True, timeout_s={LIMIT_S}).stdout)
    assert before - 0.1 <= now <= time.time() + 0.1, (before, now, time.time())

lives = dict(ttl_s={TTL_S}, idle_ttl_s={TTL_S})
template = vmfork.Template.open(sys.argv[1])
with template.fork(**lives) as own, template.start(name="stepped", **lives) as alone:
    handle = template.fork().detach(ttl_s={TTL_S})
    for _ in range(3):
        with template.fork() as fork:
            fork.pause()
            wait()
            fork.resume()
            check_clock(fork)
        with template.fork() as fork:
            check_clock(fork)
        for vm in (own, alone):
            vm.exec(["true"], timeout_s={LIMIT_S}, check=True)
        assert {TTL_S - LIMIT_S} < handle.left_s() <= {TTL_S}, handle.left_s()
        with vmfork.VM.attach(handle) as given:
            given.exec(["true"], timeout_s={LIMIT_S}, check=True)
            handle = given.detach(ttl_s=handle.left_s())
        assert {{own.id, alone.id, given.id}} <= {{each.id for each in vmfork.VM.list()}}
    vmfork.VM.attach(handle).close()
    wait()
    alone.stop(grace_s=0)
"""


@pytest.fixture
def clock(tmp_path) -> SteppedClock:
    return SteppedClock(tmp_path)


def test_machines_survive_a_clock_that_jumps_and_a_fork_has_that_of_now(template_name, clock) -> None:
    argv = [sys.executable, "-c", OWNER, template_name]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(argv, env={**os.environ, **clock.environ}, text=True, **pipes) as owner:
        try:
            for off_s in (HOUR_S, -HOUR_S, 0):
                assert owner.stdout.readline() == "waits\n", owner.stderr.read()
                clock.step_to(off_s)
                for argv in (["gc", "--json"], ["ps", "--json"]):
                    told = json.loads(command(*argv, env=clock.environ).check().out)
                assert len(told) == 4
                (alone,) = [each for each in told if each["name"] == "stepped"]
                owner.stdin.write("\n")
                owner.stdin.flush()
            assert owner.stdout.readline() == "waits\n", owner.stderr.read()
            _, said = owner.communicate("\n", timeout=LIMIT_S)
        finally:
            owner.kill()
    # A user who may not open /dev/kvm is told so.
    said = [line for line in said.splitlines() if not line.startswith("note: /dev/kvm")]
    assert (owner.returncode, said) == (0, [])
    for off_s in (HOUR_S, -HOUR_S, 0):
        clock.step_to(off_s)
        ended = json.loads(command("ps", "-a", "--json", env=clock.environ).check().out)
        assert alone["id"] in {each["id"] for each in ended}

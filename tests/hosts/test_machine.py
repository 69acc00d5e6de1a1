"""A test host tells the truth: what its job said, how it ended, and what became of it when it did not end."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from hosts.disk import open_disk
from hosts.machine import run_job
from hosts.watch import HostDied, HostFailed

pytestmark = pytest.mark.vm

TOOLS = Path(__file__).parents[2] / "tools"
LIMIT_S = 120.0

# Runs the job on its standard input for ever.
RUNNER = f"""
import os, sys
from hosts.disk import open_disk
from hosts.machine import run_job
with open_disk("trixie") as disk, os.fdopen(int(sys.argv[1]), "rb") as job:
    run_job(disk, job, limit_s={LIMIT_S})
"""


@pytest.fixture(scope="module")
def disk():
    with open_disk("trixie") as disk:
        yield disk


@contextmanager
def job(script: str):
    """The file holds a job that runs that script of the shell."""
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            info = tarfile.TarInfo("run")
            info.size = len(script.encode())
            tar.addfile(info, io.BytesIO(script.encode()))
        yield file


def test_output_status_and_files_of_a_job_come_back(disk, capfd) -> None:
    script = (
        "echo out; echo err >&2; grep -c svm /proc/cpuinfo; test -c /dev/kvm; echo $?; echo kept > results/file; exit 3"
    )
    with job(script) as file:
        outcome = run_job(disk, file, limit_s=LIMIT_S)
    assert outcome.status == 3
    assert outcome.results["file"] == b"kept\n"
    assert b"Nested Paging enabled" in outcome.results["dmesg"]
    first, *lines = capfd.readouterr().out.splitlines()
    assert first.startswith("test host: Linux 6.")
    assert lines == ["out", "err", "1", "0"]


def test_what_a_job_writes_is_not_there_for_the_next(disk) -> None:
    for _ in range(2):
        with job("test ! -e /root/written && touch /root/written") as file:
            assert run_job(disk, file, limit_s=LIMIT_S).status == 0


def test_a_host_that_goes_down_is_told_with_its_console(disk) -> None:
    with job("echo c > /proc/sysrq-trigger") as file, pytest.raises(HostDied, match="ended without a word") as failed:
        run_job(disk, file, limit_s=LIMIT_S)
    assert "sysrq triggered crash" in str(failed.value)


def test_a_job_that_hangs_is_ended_at_the_limit_with_what_it_said(disk, capfd) -> None:
    begin = time.monotonic()
    with (
        job("echo begun; echo stuck > /dev/kmsg; sleep 1000") as file,
        pytest.raises(HostFailed, match="after 60 s") as failed,
    ):
        run_job(disk, file, limit_s=60)  # on a busy machine a host has started after 40
    assert time.monotonic() - begin < 70
    assert not isinstance(failed.value, HostDied)
    assert "begun" in capfd.readouterr().out
    # With what its kernel tells of its tasks, what its CPU did, and what the job said last.
    for said in "stuck", "sysrq: Show Blocked State", "RIP=", "its job:\n  test host: Linux", "  begun":
        assert said in str(failed.value), said


def test_a_kernel_that_stands_still_is_told_from_a_job_that_hangs(disk, tmp_path) -> None:
    """Here all that runs in it is stopped; a machine cannot be told to stop its kernel."""
    with (
        job("echo begun; kill -STOP -1; sleep 1000") as file,
        pytest.raises(HostDied, match="stood still for 10 s") as failed,
    ):
        run_job(disk, file, limit_s=LIMIT_S, silent_s=10)
    assert "begun" in str(failed.value)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_no_machine_outlives_who_started_it(disk, number) -> None:
    with job("sleep 1000") as file:
        environment = {**os.environ, "PYTHONPATH": str(TOOLS)}
        runner = subprocess.Popen(
            [sys.executable, "-c", RUNNER, str(file.fileno())],
            env=environment,
            pass_fds=[file.fileno()],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            assert runner.stdout.readline().startswith(b"test host: ")
            (machine,) = map(int, Path(f"/proc/{runner.pid}/task/{runner.pid}/children").read_text().split())
            runner.send_signal(number)
            assert runner.wait(LIMIT_S) != 0
        finally:
            runner.kill()
            runner.communicate()
    end = time.monotonic() + LIMIT_S
    while Path(f"/proc/{machine}/cmdline").exists() and Path(f"/proc/{machine}/cmdline").read_bytes():
        assert time.monotonic() < end
        time.sleep(0.01)

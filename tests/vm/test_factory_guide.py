"""docs/guides/factories.md, step by step: its commands as they stand there, and what happens to the host between them.

No systemd is here. Its unit's command is started and killed in its place, and what a reboot takes is taken away.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.vm.cli_runner import LIMIT_S, Outcome, Running, left_of, run
from tests.vm.emulator import Emulator
from vmfork.host.tmpfs import unmount
from vmfork.hypervisor.qemu import find_qemu
from vmfork.machine.folder import sweep_vms

pytestmark = pytest.mark.vm

GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "factories.md").read_text()
SECTIONS = dict(section.split("\n", 1) for section in re.split(r"^## ", GUIDE, flags=re.MULTILINE)[1:])


def blocks(section: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", SECTIONS[section], re.MULTILINE | re.DOTALL)


def commands_of(section: str) -> list[str]:
    """What its reader types as an ordinary user."""
    lines = "".join(blocks(section, "console")).splitlines()
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


class Host:
    """The host of the guide: its folders, its vmfork.toml, its emulator, and which sections were done."""

    def __init__(self, folder: Path, runtime: Path, emulator: Emulator) -> None:
        self.folder, self.runtime, self.emulator = folder, runtime, emulator
        self.done: list[str] = []
        tools = folder / "bin"
        tools.mkdir()
        (tools / "vmfork").write_text(f'#!/bin/sh\nexec {sys.executable} -m vmfork "$@"\n')
        (tools / "vmfork").chmod(0o755)
        self.settings = {
            "VMFORK_RUNTIME_DIR": str(runtime),
            "VMFORK_VM_QEMU": str(emulator.path),
            "PATH": f"{tools}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        }

    def follow(self, section: str) -> list[Outcome]:
        """The section's commands were run, and none of them failed."""
        self.done.append(section)
        return [self.run(command).check() for command in commands_of(section)]

    def run(self, command: str) -> Outcome:
        return run("sh", "-c", command, env=self.settings, cwd=self.folder)

    @contextmanager
    def serving(self, *, end: int = signal.SIGTERM):
        """The unit's command runs, and serves."""
        with Running(
            command=("sh", "-c", "exec vmfork factory init --json"), env=self.settings, cwd=self.folder
        ) as unit:
            unit.wait_for('"serving"', fd=1)
            yield unit
            unit.interrupt(end)
            assert unit.end().status == (0 if end == signal.SIGTERM else -end)

    def reboot(self) -> None:
        """What lies in memory is gone; HOME is as it was."""
        sweep_vms(self.runtime / "vms")
        for generation in (self.runtime / "templates").glob("*/*"):
            unmount(generation)
        shutil.rmtree(self.runtime)


@pytest.fixture
def host(instance, tmp_path):
    real = asyncio.run(find_qemu())
    emulator = Emulator(tmp_path / "qemu", real.path, ".".join(map(str, real.release)))
    runtime = Path(tempfile.mkdtemp(prefix="vmfork-guide-", dir="/dev/shm"))
    host = Host(tmp_path, runtime, emulator)
    yield host
    for name in ("web", "roomy"):
        host.run(f"vmfork template rm {name}")
    host.run("vmfork gc")
    left = left_of(runtime)
    host.reboot()
    assert left == []


def status_of(host: Host) -> dict[str, object]:
    return json.loads(host.run("vmfork factory status --json").out)


def until(is_so) -> None:
    end = time.monotonic() + LIMIT_S
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.5)


def output_of(host: Host, section: str) -> tuple[str, str]:
    """What the section's program printed, and what is shown beneath it."""
    ((program, shown),) = re.findall(r"```python\n(.*?)```\n\n```\n(.*?)```", SECTIONS[section], re.DOTALL)
    said = run(sys.executable, "-c", program, env=host.settings, cwd=host.folder)
    return said.check().out, shown


@pytest.mark.limit_s(600)
def test_from_an_empty_host_to_a_pool_that_survives(host) -> None:
    host.follow("From an empty host")
    (toml,) = blocks("A warm template", "toml")
    (host.folder / "vmfork.toml").write_text(toml)
    *_, status = host.follow("A warm template")
    assert status.out.startswith("on: template web")

    with host.serving(end=signal.SIGKILL) as unit:
        (status,) = host.follow("A pool under systemd")
        assert f"on: VM cache server, process {unit.process.pid}" in status.out
        (told,) = host.follow("Machines from it")
        assert (told.out, "kept ready by the VM cache server" in told.err) == ("warm\n", True), told
        printed, shown = output_of(host, "Machines from it")
        assert printed == shown

        assert "one" in status_of(host)["traits"]["qemu.version"]
        host.emulator.install("two")
        *runs, status = host.follow("When the emulator is upgraded")
        assert [each.out for each in runs] == ["warm\n", "warm\n"]
        assert status.out.startswith("on: VM cache server")
        # What was held of the former is given first; what is made in its place is of the template that was built again.
        until(lambda: "two" in status_of(host)["traits"]["qemu.version"])

        _, again = host.follow("When a template is removed")
        assert again.out == "warm\n"
    (meanwhile,) = host.follow("When the server is killed")
    assert meanwhile.out == "warm\n"
    with host.serving():
        assert host.run("vmfork run -- cat /root/state").check().out == "warm\n"

    host.reboot()
    with host.serving():
        again, status = host.follow("When the host is rebooted")
        assert (again.out, status.out.startswith("on: VM cache server")) == ("warm\n", True)

    del host.settings["VMFORK_VM_QEMU"]  # the program is for the emulator on PATH
    host.follow("Other sizes")
    printed, shown = output_of(host, "Other sizes")
    assert printed == shown
    assert host.done == [section for section in SECTIONS if commands_of(section)]

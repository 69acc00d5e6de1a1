"""Runs a job in a test host: a machine of plain QEMU, with an AMD CPU that has SVM and nested paging, emulated by TCG.

So the host's kernel has a KVM that works, whatever the CPU here is. Everything that passes between us and the machine
is a descriptor; no file has a name that somebody would have to remove.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hosts.disk import Disk

MEMORY_MIB = 3072
# One CPU: with two, Linux 6.12 panics in KVM's code under QEMU 7.2. Not all that an EPYC has is emulated; QEMU says so.
_CPU = "EPYC,+svm,+npt"
# The host is for tests alone, and each entry to its kernel costs several times as much with mitigations. Its TSC is
# this host's, and steady; the timer that its kernel would check it by is late where this host is busy.
_COMMAND_LINE = "console=ttyS0 panic=-1 mitigations=off tsc=reliable"
_TAIL_LINES = 60


class HostFailed(Exception):
    """The test host ended, or was ended, without an exit status of its job. The text tells why, with its console."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended, and the files that it left in `results`."""

    status: int
    results: Mapping[str, bytes]


def run_job(disk: Disk, job: IO[bytes], *, limit_s: float, memory_mib: int = MEMORY_MIB) -> Outcome:
    """The job has ended by itself, and what it said is on our standard output; or `HostFailed`.

    `job` is a tar file with a program `run`. On any way out the machine is gone; it dies with us even if we are killed.
    """
    with tempfile.TemporaryFile() as console, tempfile.TemporaryFile() as results, tempfile.TemporaryFile() as said:
        fds = [file.fileno() for file in (console, results, job)]
        machine = subprocess.Popen(
            _build_argv(disk, *fds, memory_mib=memory_mib),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            pass_fds=fds,
        )
        try:
            in_time = _copy_output(machine, end=time.monotonic() + limit_s)
        finally:
            machine.kill()
            machine.wait()
        files = _read_results(results)
        if "status" not in files:
            why = "it ended without a word" if in_time else f"it was ended after {limit_s:.0f} s"
            tail = "".join(f"  {line}\n" for file in (said, console) for line in _read_tail(file))
            raise HostFailed(f"the test host sent no exit status: {why}. The end of its console:\n{tail}")
        return Outcome(int(files["status"]), files)


def _build_argv(disk: Disk, console: int, results: int, job: int, *, memory_mib: int) -> Sequence[str]:
    return [
        *("setpriv", "--pdeathsig", "KILL", "--"),
        *("qemu-system-x86_64", "-machine", "q35", "-accel", "tcg", "-cpu", _CPU),
        *("-smp", "1", "-m", f"{memory_mib}M", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-kernel", str(disk.kernel), "-initrd", str(disk.initramfs), "-append", _COMMAND_LINE),
        # What is written goes to a file that QEMU has unlinked: several hosts use one disk, each as if it were new.
        *("-drive", f"file={disk.disk},format=raw,if=virtio,snapshot=on"),
        *("-drive", f"file=/proc/self/fd/{job},format=raw,if=virtio,readonly=on"),
        *("-chardev", f"file,id=console,path=/proc/self/fd/{console}", "-serial", "chardev:console"),
        # Not `stdio`: that chardev counts as closed once its input has ended, and then the guest waits for ever.
        *("-device", "virtio-serial", "-chardev", "file,id=output,path=/proc/self/fd/1"),
        *("-device", "virtserialport,chardev=output,name=output"),
        *("-chardev", f"file,id=results,path=/proc/self/fd/{results}"),
        *("-device", "virtserialport,chardev=results,name=results"),
    ]


def _copy_output(machine: subprocess.Popen[bytes], *, end: float) -> bool:
    """True when the machine has closed its output before `end`."""
    assert machine.stdout is not None
    with machine.stdout as output:
        while select.select([output], [], [], max(0.0, end - time.monotonic()))[0]:
            data = os.read(output.fileno(), 1 << 16)
            if not data:
                return True
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
    return False


def _read_results(file: IO[bytes]) -> dict[str, bytes]:
    """The files that came over; none when the host died before it had sent them all."""
    file.seek(0)
    found = {}
    try:
        with tarfile.open(fileobj=file, mode="r|") as tar:
            for member in tar:
                content = tar.extractfile(member)
                if content is not None:
                    found[member.name.removeprefix("./")] = content.read()
    except tarfile.TarError:
        return {}
    return found


def _read_tail(file: IO[bytes]) -> list[str]:
    file.seek(0)
    return file.read().decode(errors="replace").splitlines()[-_TAIL_LINES:]

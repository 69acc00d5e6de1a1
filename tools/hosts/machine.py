"""Runs a job in a test host: a machine of plain QEMU, with an AMD CPU that has SVM and nested paging, emulated by TCG.

So the host's kernel has a KVM that works, whatever the CPU here is. Everything that passes between us and the machine
is a descriptor; no file has a name that somebody would have to remove.
"""

from __future__ import annotations

import socket
import subprocess
import tarfile
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from hosts.watch import SILENT_S, HostDied, HostFailed, Watch, ask

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hosts.disk import Disk

MEMORY_MIB = 3072
# One CPU: with two, Linux 6.12 panics in KVM's code under QEMU 7.2. Not all that an EPYC has is emulated; QEMU says so.
_CPU = "EPYC,+svm,+npt"
# The host is for tests alone, and each entry to its kernel costs several times as much with mitigations. Its TSC is
# this host's, and steady; the timer that its kernel would check it by is late where this host is busy.
_COMMAND_LINE = "console=ttyS0 panic=-1 mitigations=off tsc=reliable sysrq_always_enabled"
_TAIL_LINES = 60


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended, and the files that it left in `results`."""

    status: int
    results: Mapping[str, bytes]


def run_job(
    disk: Disk, job: IO[bytes], *, limit_s: float, silent_s: float = SILENT_S, memory_mib: int = MEMORY_MIB
) -> Outcome:
    """The job has ended by itself, and what it said is on our standard output; or `HostFailed`.

    `job` is a tar file with a program `run`. On any way out the machine is gone; it dies with us even if we are killed.
    """
    with ExitStack() as stack:
        console, results, alive, said = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(4))
        monitor, its_monitor = (stack.enter_context(one) for one in socket.socketpair())
        fds = [one.fileno() for one in (console, results, alive, job, its_monitor)]
        machine = subprocess.Popen(
            _build_argv(disk, *fds, memory_mib=memory_mib),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            pass_fds=fds,
        )
        watch = Watch()
        failed: HostFailed = HostDied("it ended without a word")
        asked: Sequence[str] = []
        try:
            assert machine.stdout is not None
            with machine.stdout as output:
                watch.follow(output, alive, limit_s=limit_s, silent_s=silent_s)
        except HostFailed as error:
            failed, asked = error, ask(monitor)
        finally:
            machine.kill()
            machine.wait()
        files = _read_results(results)
        if "status" in files:
            return Outcome(int(files["status"]), files)
        tails = {"console": [*_read_tail(said), *_read_tail(console)], "CPU": asked, "job": watch.read_last()}
        text = f"the test host sent no exit status: {failed}."
        for name, lines in tails.items():
            text += f" The end of its {name}:\n" + "".join(f"  {line}\n" for line in lines)
        raise type(failed)(text)


def _build_argv(
    disk: Disk, console: int, results: int, alive: int, job: int, monitor: int, *, memory_mib: int
) -> Sequence[str]:
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
        *("-chardev", f"file,id=alive,path=/proc/self/fd/{alive}"),
        *("-device", "virtserialport,chardev=alive,name=alive"),
        *("-chardev", f"socket,id=monitor,fd={monitor}", "-mon", "chardev=monitor,mode=readline"),
    ]


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

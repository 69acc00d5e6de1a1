"""A copier in whose midst somebody is killed, and a process that copies a machine with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.host import copier

if TYPE_CHECKING:
    from pathlib import Path

# It stands between the copier and QEMU, and kills whom it is to, in Python, once QEMU has been told the command.
STRUCK_AT = """#!/usr/bin/env python3
import os, select, signal, socket, subprocess, sys
argv0, *argv = sys.argv
qemu = socket.socket(fileno=int(argv[0]))
ours, theirs = socket.socketpair()
layers = [each.partition(":")[0] for each in argv[8:] if each[:1].isdigit()]
passed = [int(each) for each in (*argv[1:7], *layers) if int(each) >= 0]
child = subprocess.Popen(["{real}", str(theirs.fileno()), *argv[1:]], pass_fds=[theirs.fileno(), *passed])
theirs.close()
qemu.setblocking(True)
done = False
while True:
    for ready in select.select([ours, qemu], [], [])[0]:
        try:
            data, fds, _, _ = socket.recv_fds(ready, 65536, 4)
            if not data:
                sys.exit(0)
            socket.send_fds(qemu if ready is ours else ours, [data], fds)
        except ConnectionError:  # who was killed had not read all
            sys.exit(0)
        if ready is ours and b'"{step}"' in data and not done:
            done = True
            open(argv0 + "-struck", "w").close()
            for pid in {victims}:
                os.kill(pid, signal.SIGKILL)
"""


def strike_at(folder: Path, step: str, victims: str) -> Path:
    """A copier in whose midst the processes that `victims` names, in Python, are killed."""
    script = folder / "copier"
    script.write_text(STRUCK_AT.format(real=copier.find_copier(), step=step, victims=victims))
    script.chmod(0o755)
    return script


def was_struck(script: Path) -> bool:
    return script.with_name("copier-struck").exists()


# Of which machine, and with what in the place of the copier, is told on its command line.
FORKS = """
import asyncio, sys
from pathlib import Path
from vmfork.aio import VM
from vmfork.host import copier

copier.find_copier = lambda: Path(sys.argv[2])

async def work():
    async with VM.connect(sys.argv[1]) as vm:
        await vm.fork(2, lasting=True, ttl_s=600)

asyncio.run(work())
"""

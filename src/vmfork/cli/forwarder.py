"""Processes of their own that forward ports of a machine, hold what it may reach, or answer the programs that fork it.

They end with the machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from vmfork.agent.deadline import deadline
from vmfork.config import find_places
from vmfork.errors import HostError
from vmfork.host.wait import wait_readable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmfork.network.address import HostAddress
    from vmfork.network.policy import NetworkPolicy

# The option of `vmfork forward`, `vmfork network` and `vmfork guest-fork` that makes them one.
OPTION = "--left-behind"
# What such a process needs of our environment. The rest may be keys, and it lives long.
_KEPT = ("PATH", "PYTHON", "VMFORK_")
_READ_SIZE = 65_536
# It starts a Python, connects to the machine, and has the guest listen.
_LIMIT_S = 60.0
_NOTHING_TOLD = {
    "message": "the process that was to be left behind ended by itself",
    "hint": "was it killed? try again, and see the host's own log where it ends again",
}


async def leave_forwarder(vm_id: str, ports: Sequence[tuple[HostAddress, int]]) -> Sequence[Mapping[str, object]]:
    """The ports are forwarded until the machine ends, or somebody attaches it. Gives what `vmfork forward` tells.

    Raises `HostError` when one cannot be had; then none is.
    """
    told: Sequence[Mapping[str, object]] = await _leave("forward", vm_id, *(f"{host}:{guest}" for host, guest in ports))
    return told


async def leave_network(vm_id: str, policy: NetworkPolicy) -> None:
    """The machine may reach what the policy says until it ends, or somebody attaches it. Raises `HostError`."""
    if isinstance(policy, str):
        await _leave("network", vm_id, "--network", policy)
        return
    entries = [part for entry in policy.entries for part in ("--allow", entry)]
    await _leave("network", vm_id, *entries, *(["--network-log-only"] if policy.log_only else []))


async def leave_answerer(vm_id: str, most: int) -> None:
    """Programs of the machine may fork it until it ends, or somebody attaches it. Raises `HostError`.

    So many machines may live beside it; they end with the process, as that does with the machine.
    """
    await _leave("guest-fork", vm_id, str(most))


async def _leave(command: str, *arguments: str) -> Any:
    """What the command tells, once it is left behind. Raises `HostError` with what it failed of, `DeadlineExceeded`.

    After an error it has ended.
    """
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=0) as answer:
        try:
            process = _spawn([command, OPTION, "--json", *arguments], writing)
        finally:
            os.close(writing)
        try:
            async with deadline(f"starting the process for vmfork {command}", _LIMIT_S):
                return _parse(await _read_all(answer.fileno()))
        except BaseException:
            process.kill()
            process.wait()
            raise


def _spawn(arguments: Sequence[str], writing: int) -> subprocess.Popen[bytes]:
    places = find_places()
    kept = {name: value for name, value in os.environ.items() if name.startswith(_KEPT)}
    return subprocess.Popen(
        [sys.executable, "-m", "vmfork", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=writing,
        stderr=subprocess.DEVNULL,  # the document has the error too
        start_new_session=True,
        cwd="/",
        env=kept | {"VMFORK_HOME": str(places.home), "VMFORK_RUNTIME_DIR": str(places.runtime)},
    )


async def _read_all(fd: int) -> bytes:
    """What the process told until it closed its standard output, or ended."""
    document = b""
    while True:
        await wait_readable(fd)
        if not (data := os.read(fd, _READ_SIZE)):
            return document
        document += data


def _parse(document: bytes) -> Any:
    """The document, where the process told of no failure."""
    told = json.loads(document) if document else {"error": _NOTHING_TOLD}
    if not isinstance(told, dict) or "error" not in told:
        return told
    failure = told["error"]
    raise HostError(failure["message"], hint=failure["hint"])


def leave_streams() -> None:
    """Whoever started us has all that we tell: the standard streams are nobody's."""
    sys.stdout.flush()
    nobody = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nobody, stream)
    os.close(nobody)

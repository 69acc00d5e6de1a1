"""What an emulator was built with: asked of itself, once for each file, never guessed from its version."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from vmfork.errors import HostError
from vmfork.host.asking import ask_program
from vmfork.host.environ import bare_environ
from vmfork.host.folders import make_private, write_whole
from vmfork.hypervisor.qemu.board import BOARDS, board_of
from vmfork.records import read_record, write_record

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable
    from pathlib import Path

    from vmfork.hypervisor.base import Hardware
    from vmfork.hypervisor.qemu.binary import QemuBinary

_LIMIT_S = 20.0


def _name_of(device: str) -> str:
    return device.partition(",")[0]


# A machine of nothing: no guest runs. The first accelerator that can be had is taken, and it is used for nothing:
# `qtest` is built into some emulators, and KVM may be forbidden.
_ARGUMENTS = (
    "-machine", "none,accel=tcg:qtest:kvm", "-nodefaults", "-no-user-config", "-display", "none", "-qmp", "stdio",
)  # fmt: skip
# What a machine of ours may need. Each is asked for by its name: to list all that there is, QEMU loads every module in
# the folder that it was built for, and aborts at those of another build (10.0 beside 7.2).
_DEVICES = (
    *(_name_of(device) for board in BOARDS for device in (board.port, board.card, board.disk)),
    "virtserialport",
    "vmgenid",
    "pc-dimm",
)
_ACCELS = ("kvm", "tcg")
_QUESTIONS: tuple[dict[str, Any], ...] = (
    {"execute": "query-machines"},
    # Refused where QEMU was built without seccomp.
    {"execute": "query-command-line-options", "arguments": {"option": "sandbox"}},
    # Refused where it was built without libslirp.
    {"execute": "netdev_add", "arguments": {"type": "user", "id": "asked", "restrict": True}},
    *(
        {"execute": "qom-list-properties", "arguments": {"typename": name}}
        for name in (*_DEVICES, *(f"{accel}-accel" for accel in _ACCELS))
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """`machines`, `devices` and `accels` by QEMU's names, of the latter those that our machines may need.

    `has_sandbox`: it can give up what it does not need. `has_user_network`: a card can lead somewhere.
    """

    machines: tuple[str, ...]
    devices: tuple[str, ...]
    accels: tuple[str, ...]
    has_sandbox: bool
    has_user_network: bool

    def find_missing(self, hardware: Hardware) -> list[str]:
        """What the machine needs and this emulator lacks, in QEMU's words; empty when it lacks nothing."""
        board = board_of(hardware.machine)
        devices = [_name_of(board.port), "virtserialport"]
        if hardware.vmgenid:
            devices.append("vmgenid")
        if hardware.max_memory_mib > hardware.memory_mib:
            devices.append("pc-dimm")
        if hardware.nic:
            devices.append(_name_of(board.card))
        if hardware.disk or hardware.scratch_mib:
            devices.append(_name_of(board.disk))
        return [
            *_without([f"accelerator {hardware.accel}"], (f"accelerator {accel}" for accel in self.accels)),
            *_without([f"machine {hardware.machine}"], (f"machine {machine}" for machine in self.machines)),
            *_without([f"device {device}" for device in devices], (f"device {device}" for device in self.devices)),
            # Debian 13's emulator for `microvm` alone has the card, and nothing that it could lead to.
            *(["network backend user"] if hardware.nic and not self.has_user_network else []),
        ]


def _without(wanted: list[str], there: Iterable[str]) -> list[str]:
    known = set(there)
    return [each for each in wanted if each not in known]


_asked: dict[tuple[Path, str, tuple[str, ...]], Abilities] = {}


async def ask_abilities(binary: QemuBinary, *, kept: Path) -> Abilities:
    """What `binary` was built with. The answer is kept in the folder `kept` for as long as the file is the same.

    Asking takes about 0.1 s, once. Raises `HostError` when it does not answer as QEMU does.
    """
    # What an older vmfork did not ask for is not in its answer.
    key = (binary.path, binary.stamp, _DEVICES)
    if key not in _asked:
        path = kept / f"qemu-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.json"
        known = _read(path)
        if known is None:
            known = _understand(binary, await _ask(binary.path))
            with suppress(OSError, HostError):  # asked again next time
                make_private(kept)
                write_whole(path, write_record(known))
        _asked[key] = known
    return _asked[key]


def _read(path: Path) -> Abilities | None:
    try:
        return read_record(Abilities, path.read_bytes())
    except (OSError, ValueError):
        return None


async def _ask(path: Path) -> bytes:
    lines = ({"execute": "qmp_capabilities"}, *_QUESTIONS, {"execute": "quit"})
    asked = "".join(json.dumps(line) + "\n" for line in lines).encode()
    talk = partial(_converse, asked=asked)
    try:
        return await ask_program(path, *_ARGUMENTS, talk=talk, env=bare_environ(), limit_s=_LIMIT_S, has_input=True)
    except TimeoutError as error:
        raise HostError(f"{path} did not tell within {_LIMIT_S:g} s what it was built with") from error


async def _converse(child: asyncio.subprocess.Process, *, asked: bytes) -> bytes:
    """All that the child answers until it ends.

    Its input stays open meanwhile: a QEMU on a busy host that sees the end of it drops what it has not answered yet.
    """
    assert child.stdin is not None
    assert child.stdout is not None
    with suppress(BrokenPipeError, ConnectionResetError):  # it ended first: its output tells
        child.stdin.write(asked)
        await child.stdin.drain()
    output = await child.stdout.read()
    await child.wait()
    child.stdin.close()
    return output


def _understand(binary: QemuBinary, output: bytes) -> Abilities:
    try:
        told = [json.loads(line) for line in output.splitlines()]
        answers = [line for line in told if "return" in line or "error" in line][1 : len(_QUESTIONS) + 1]
        machines, sandbox, user_network, *named = answers
        there = {name for name, answer in zip((*_DEVICES, *_ACCELS), named, strict=True) if "return" in answer}
        return Abilities(
            machines=tuple(sorted(machine["name"] for machine in machines["return"])),
            devices=tuple(sorted(there.intersection(_DEVICES))),
            accels=tuple(sorted(there.intersection(_ACCELS))),
            has_sandbox="return" in sandbox,
            has_user_network="return" in user_network,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        said = output.decode(errors="replace")
        raise HostError(f"{binary.path} does not tell what it was built with", log=said) from error

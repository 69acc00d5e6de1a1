"""A machine is given another size, and its old one again where its guest does not do its part."""

from __future__ import annotations

import asyncio
import re

import pytest

from vmfork.admission.charge import Charge, Ticket
from vmfork.adopt.identity import Identity
from vmfork.config import Limits
from vmfork.errors import ConfigError, FitError, GuestError, HostError, NoRoom
from vmfork.host.process import ProcessIdentity
from vmfork.hypervisor.base import Hardware, MemoryPiece
from vmfork.machine.facts import MachineFacts
from vmfork.machine.fit import fit
from vmfork.machine.folder import VMFolder, find_ticket
from vmfork.machine.running import Running

HARDWARE = Hardware(
    machine="pc-q35-7.2", accel="tcg", cpu_model="max", cpus=1, memory_mib=256, max_cpus=3, max_memory_mib=1024
)


class Guest:
    """A guest and its machine: which CPUs are online, and the pieces of memory that it has."""

    identity = ProcessIdentity(12, 34)

    def __init__(self) -> None:
        self.online = {0}
        self.pieces: list[MemoryPiece] = []
        self.keeps: set[int] = set()  # pieces of these sizes are busy
        self.used_mib = 50
        self.hangs = False
        self.lost_cpus: set[int] = set()  # what does not come online

    async def read_file(self, path, *, max_bytes, timeout_s) -> bytes:
        total_kib = (200 + sum(piece.size_mib for piece in self.pieces)) * 1024
        return {
            "present": b"0-2",
            "online": ",".join(map(str, sorted(self.online))).encode(),
            "block_size_bytes": b"8000000",
            "meminfo": f"MemTotal: {total_kib} kB\nMemAvailable: {total_kib - self.used_mib * 1024} kB".encode(),
            "auto_online_blocks": b"online",
        }[path.rpartition("/")[2]]

    async def write_file(self, path, value, **_) -> None:
        cpu = int(re.search(r"cpu(\d+)/online", path)[1])
        if value == b"1" and cpu not in self.lost_cpus:
            self.online.add(cpu)
        elif value == b"0":
            self.online.discard(cpu)

    async def grown(self, *, timeout_s) -> None:
        pass

    async def list_memory(self):
        return list(self.pieces)

    async def add_memory(self, name, size_mib) -> None:
        self.pieces.append(MemoryPiece(name, size_mib))

    async def remove_memory(self, name) -> None:
        (piece,) = [piece for piece in self.pieces if piece.name == name] or [None]
        if self.hangs:
            await asyncio.Event().wait()
        if piece is not None and piece.size_mib in self.keeps:
            raise HostError("the guest does not give the memory back: it is busy")
        self.pieces = [each for each in self.pieces if each != piece]

    @property
    def size(self) -> tuple[set[int], list[int]]:
        return self.online, [piece.size_mib for piece in self.pieces]


@pytest.fixture
async def guest() -> Guest:
    return Guest()


@pytest.fixture
async def running(tmp_path, guest):
    folder = VMFolder.create(tmp_path, "0123456789ab")
    facts = MachineFacts(identity=Identity.fresh("0123456789ab", template="py"), hardware=HARDWARE, image="default")
    running = Running(facts, folder=folder, machine=guest, agent=guest)
    yield running
    running.state = "closed"  # or it would be closed when it is dropped
    folder.close()


async def test_it_grows_and_shrinks_to_what_it_was(running, guest) -> None:
    await fit(running, cpus=3, memory_mib=500)
    assert guest.size == ({0, 1, 2}, [256])
    await fit(running, memory_mib=1024)
    assert running.facts.hardware.added_mib == (256, 512)
    await fit(running, cpus=2)
    assert guest.size == ({0, 1}, [256, 512])
    await fit(running, memory_mib=512)
    assert (guest.size, running.facts.hardware.memory_mib) == (({0, 1}, [256]), 512)
    await fit(running, cpus=1, memory_mib=256)
    assert guest.size == ({0}, [])
    assert running.facts.hardware == HARDWARE


async def test_growth_that_the_host_has_no_room_for_is_refused_and_nothing_was_done(running, guest) -> None:
    charge = Charge(share_mib=128, most_mib=320, tasks=6)
    ticket = Ticket(charge=charge, limits=Limits(reserve_mib=1 << 31))
    running.folder.write_ticket(ticket)
    with pytest.raises(NoRoom, match="256 MiB of memory are needed"):
        await fit(running, cpus=2, memory_mib=512)
    assert (guest.size, running.facts.hardware) == (({0}, []), HARDWARE)
    assert find_ticket(running.folder.path) == ticket


async def test_what_a_machine_was_promised_follows_its_size(running, guest) -> None:
    charge = Charge(share_mib=128, most_mib=320, tasks=6)
    running.folder.write_ticket(Ticket(charge=charge, limits=Limits(overcommit=0)))
    await fit(running, memory_mib=512)
    assert find_ticket(running.folder.path).charge == charge.grown(256)
    guest.keeps = {256}
    with pytest.raises(FitError):
        await fit(running, memory_mib=256)
    assert find_ticket(running.folder.path).charge == charge.grown(256)
    guest.keeps = set()
    await fit(running, memory_mib=256)
    assert find_ticket(running.folder.path).charge == charge


async def test_memory_that_the_guest_keeps_is_named_and_all_is_as_before(running, guest) -> None:
    await fit(running, cpus=2, memory_mib=512)
    await fit(running, memory_mib=640)
    before = running.facts.hardware
    guest.keeps = {256}
    with pytest.raises(FitError, match=r"could not be given 1 CPUs and 256 MiB: 256 MiB stay: .*it is busy") as caught:
        await fit(running, cpus=1, memory_mib=256)
    assert caught.value.rolled_back
    assert (guest.size, running.facts.hardware) == (({0, 1}, [256, 128]), before)


async def test_memory_that_the_guest_needs_is_not_asked_for(running, guest) -> None:
    """A guest would try for ever to move what has no place elsewhere."""
    await fit(running, memory_mib=512)
    guest.used_mib = 190
    with pytest.raises(FitError, match=r"its guest needs it: 266 MiB are available") as caught:
        await fit(running, memory_mib=256)
    assert (caught.value.rolled_back, guest.size) == (True, ({0}, [256]))


async def test_a_guest_that_does_not_answer_may_still_give_memory_back(running, guest) -> None:
    await fit(running, memory_mib=512)
    guest.hangs = True
    with pytest.raises(FitError, match=r"256 MiB of memory \(its guest may still give it back\)") as caught:
        await fit(running, cpus=2, memory_mib=256, timeout_s=0.05)
    assert not caught.value.rolled_back
    assert guest.online == {0}


async def test_a_cpu_that_does_not_come_is_told_and_the_others_go_again(running, guest) -> None:
    guest.lost_cpus = {2}
    with pytest.raises(FitError, match="2 CPUs are online in the guest"):
        await fit(running, cpus=3)
    assert (guest.online, running.facts.hardware.cpus) == ({0}, 1)


async def test_nothing_is_done_to_a_machine_that_cannot_have_the_size_or_stands_still(running, guest) -> None:
    with pytest.raises(ConfigError):
        await fit(running, cpus=2, memory_mib=128)
    running.state = "paused"
    with pytest.raises(GuestError, match="is paused"):
        await fit(running, cpus=2)
    assert guest.size == ({0}, [])

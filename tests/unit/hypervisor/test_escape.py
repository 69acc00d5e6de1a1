"""An emulator that its guest has taken over: a program in QEMU's place tries what such a one would, and is refused.

It is started as QEMU is, by the same code and the same keeper, with the descriptors that a fork's QEMU is passed.
tests/escape/escape.c has the acts.
"""

from __future__ import annotations

import asyncio
import errno
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.children import exit_code_of, fork_child
from tests.rules.capabilities import need
from vmfork.config.isolation import BY_DEFAULT
from vmfork.host import facts, jail, keeper
from vmfork.hypervisor.base import NOT_CONTAINED, Containment, ForkedRAM, Hardware, Isolation, Launch, Restore
from vmfork.hypervisor.qemu import surroundings
from vmfork.hypervisor.qemu.binary import QemuBinary
from vmfork.hypervisor.qemu.machine import QemuMachine

ROOT = Path(__file__).parents[3]
OTHER = 65534
SECRET = b"what the template holds"
LIMIT_S = 30

# The acts that the filter alone leaves to a program of the same user: reading what that user may read.
READS = {
    "open-shadow",
    *(f"{act}-of-{whose}" for act in ("read-memory", "environment") for whose in ("owner", "sibling")),
}
# What the kernel answers where an act is refused, and nothing else: a program that is not there refuses as well.
REFUSED = {errno.EPERM, errno.EACCES, errno.EBADF, errno.EINVAL, errno.ENOSYS}
ABSENT = {errno.ENOENT, errno.ESRCH}

USERS = BY_DEFAULT.users
FULL = Containment(isolation=Isolation(level="full", parts=("filter", "namespaces", "user")), users=USERS)
NAMESPACES = Containment(isolation=Isolation(level="namespaces", parts=("filter", "namespaces")))
MAPPED = replace(NAMESPACES, mapped=True)
BASIC_USER = Containment(isolation=Isolation(level="basic", parts=("filter", "user")), users=USERS)
LANDLOCK = Containment(isolation=Isolation(level="basic", parts=("filter", "landlock")))
BASIC = Containment(isolation=Isolation(level="basic", parts=("filter",)))


@pytest.fixture(scope="module")
def place():
    """A folder that everybody may enter, with the stand-in, the keeper and the emulator's library in it."""
    spec = importlib.util.spec_from_file_location("vmfork_build", ROOT / "tools" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = build  # dataclasses look their module up
    spec.loader.exec_module(build)
    folder = Path(tempfile.mkdtemp(prefix="vmfork-escape-"))
    folder.chmod(0o755)
    build.compile_program(ROOT / "tests" / "escape", folder / "escape")
    shutil.copy(keeper.find_keeper(), folder / "keeper")
    shutil.copy(jail.find_preload(), folder / "preload.so")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def shared(place, monkeypatch) -> Path:
    """The checkout may lie where only its owner can enter: keeper and library are those of `place`."""
    monkeypatch.setattr(keeper, "find_keeper", lambda: place / "keeper")
    monkeypatch.setattr(surroundings, "find_preload", lambda: place / "preload.so")
    return place


@contextmanager
def neighbours():
    """Two processes of this user: one stands for the owner, one for the emulator of another machine."""
    children = [subprocess.Popen(["sleep", "1000"]) for _ in range(2)]
    try:
        yield [child.pid for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()


async def escape(place: Path, folder: Path, containment: Containment) -> tuple[dict[str, str], list[str]]:
    """What became of each act, and what the stand-in tells of itself."""
    template, state = folder / "memory", folder / "state"
    template.write_bytes(SECRET + bytes(8192 - len(SECRET)))
    template.chmod(0o600)
    state.write_bytes(b"state")
    vm = folder / "vm"
    vm.mkdir(mode=0o700)
    memory_fd, state_fd = (os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in (template, state))
    binary = QemuBinary(path=place / "escape", version="7.2.22", release=(7, 2, 22), stamp="", has_sandbox=True)
    with neighbours() as (owner, sibling):
        launch = Launch(
            name=f"{owner},{sibling},{memory_fd},{template}",
            folder=vm,
            hardware=Hardware(machine="pc-q35-7.2", accel="tcg", cpu_model="max", cpus=1, memory_mib=64),
            ram=ForkedRAM(memory_fd),
            start=Restore(state_fd),
            generation_id="8d8a5c4e-9f3a-4d5e-8c65-2f3f3e6a0b11",
            containment=containment,
        )
        machine = QemuMachine.start(binary, launch)
        try:
            async with asyncio.timeout(LIMIT_S):
                await machine.wait()
            lines = machine.log_tail().splitlines()
        finally:
            await machine.aclose()
            os.close(memory_fd)
            os.close(state_fd)
    assert template.read_bytes().startswith(SECRET) or containment is NOT_CONTAINED
    acts = dict(line.split() for line in lines if not line.startswith("="))
    return acts, [line.removeprefix("=") for line in lines if line.startswith("=")]


def check_refused(acts: dict[str, str], *, but: set[str] = frozenset(), absent: bool) -> None:  # type: ignore[assignment]
    """Every act was refused, those in `but` excepted. With `absent`, what it is aimed at may not be there at all."""
    assert len(acts) > 40, acts
    allowed = REFUSED | (ABSENT if absent else set())
    assert {
        act: how for act, how in acts.items() if act not in but and (how == "done" or int(how) not in allowed)
    } == {}


def contained(containment: Containment, place: Path) -> Containment:
    return replace(containment, reads=(str(place / "escape"),))


@pytest.mark.needs("root", "namespaces")
@pytest.mark.parametrize("containment", [FULL, NAMESPACES, MAPPED], ids=["full", "namespaces", "mapped"])
async def test_in_a_root_of_its_own_nothing_gets_out(shared, tmp_path, containment) -> None:
    if containment is FULL:
        need("machine-users", found=facts.has_ids(USERS.first, USERS.last))
    acts, told = await escape(shared, tmp_path, contained(containment, shared))
    check_refused(acts, absent=True)
    assert {"capabilities 0", "host 0", "end 0"} <= set(told)
    assert f"user {USERS.first if containment is FULL else 0}" in told or containment is FULL
    assert [line for line in told if line.startswith("variable")] == [
        "variable LD_PRELOAD",
        "variable VMFORK_KEEPER_FD",
        "variable VMFORK_SMALL_PAGES",
    ]
    assert not Path("/etc/vmfork-escape").exists()


@pytest.mark.needs("root")
async def test_a_user_of_its_own_is_apart_without_namespaces_too(shared, tmp_path) -> None:
    need("machine-users", found=facts.has_ids(USERS.first, USERS.last))
    acts, told = await escape(shared, tmp_path, BASIC_USER)
    check_refused(acts, absent=False)
    assert {"capabilities 0", "end 0"} <= set(told)


@pytest.mark.needs("root", "landlock")
async def test_with_landlock_nothing_is_read_either(shared, tmp_path) -> None:
    acts, told = await escape(shared, tmp_path, contained(LANDLOCK, shared))
    check_refused(acts, absent=False)
    assert {"capabilities 0", "end 0"} <= set(told)


@pytest.mark.needs("root")
async def test_the_filter_alone_leaves_nothing_but_reading(shared, tmp_path) -> None:
    acts, told = await escape(shared, tmp_path, BASIC)
    check_refused(acts, but=READS, absent=False)
    assert {"capabilities 0", "host 1", "end 0"} <= set(told)


@pytest.mark.needs("root")
@pytest.mark.parametrize(
    ("containment", "but", "absent"),
    [
        (MAPPED, set(), True),
        pytest.param(LANDLOCK, set(), False, marks=pytest.mark.needs("landlock")),
        (BASIC, READS, False),
    ],
    ids=["mapped", "landlock", "basic"],
)
def test_of_an_ordinary_user(shared, containment, but, absent) -> None:
    """The same for one who is not root; where he may not have a user namespace, it must not start at all."""

    def body() -> None:
        os.setgroups([])
        os.setresgid(OTHER, OTHER, OTHER)
        os.setresuid(OTHER, OTHER, OTHER)
        with tempfile.TemporaryDirectory(prefix="vmfork-escape-") as folder:
            acts, told = asyncio.run(escape(shared, Path(folder), contained(containment, shared)))
        check_refused(acts, but=but, absent=absent)
        assert {"capabilities 0", f"user {OTHER}", "end 0"} <= set(told), told

    assert exit_code_of(fork_child(body)) == 0


@pytest.mark.needs("root")
async def test_without_any_of_it_all_of_that_can_be_done(shared, tmp_path) -> None:
    """The acts are real ones: what is refused above is done here."""
    acts, _ = await escape(shared, tmp_path, NOT_CONTAINED)
    done = {act for act, how in acts.items() if how == "done"}
    assert {
        "open-memory-of-owner", "open-memory-of-sibling", "signal-owner", "signal-thread-of-sibling", "trace-owner",
        "handle-of-owner", "limits-of-owner", "environment-of-owner", "template-reopened", "template-by-path",
        "template-opened-to-all", "create-in-etc", "create-in-tmp", "open-shadow", "make-folder", "remove",
        "network", "shared-memory", "process", "root", "more-descriptors",
    } <= done  # fmt: skip

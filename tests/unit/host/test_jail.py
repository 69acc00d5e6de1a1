"""What a program finds in a jail, and that it does not start where a part of the jail cannot be had."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.rules.capabilities import need
from tests.unit.host.test_keeper import wait_text
from tests.unit.system_calls import called, declared
from vmfork.config.isolation import BY_DEFAULT, UserRange
from vmfork.host import facts, keeper
from vmfork.host.jail import Jail
from vmfork.host.keeper import REFUSED_STATUS, REFUSED_TEXT, KeptProcess
from vmfork.host.users import lease_user

pytestmark = [pytest.mark.usefixtures("nothing_left"), pytest.mark.needs("root", "namespaces")]


def start(log, folder: Path, jail: Jail, *argv: str) -> KeptProcess:
    program = argv or (str(keeper.find_keeper()), "nothing")
    return KeptProcess.start(program, log_fd=log[1], listen_at=folder / "keeper.sock", confined=True, jail=jail)


@pytest.fixture
def root(tmp_path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


async def test_a_program_starts_in_it_and_nothing_of_it_is_left(log, tmp_path, root) -> None:
    process = start(log, tmp_path, Jail(root=root, bound=(str(keeper.find_keeper()),)))
    assert await process.wait() == 0
    await process.aclose()
    assert list(root.iterdir()) == []
    assert str(root) not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.parametrize("mapped", [False, True])
async def test_what_cannot_be_bound_ends_it_and_is_named(log, tmp_path, root, mapped) -> None:
    process = start(log, tmp_path, Jail(root=root, bound=("/no/such/library",), mapped=mapped))
    assert await process.wait() == REFUSED_STATUS
    await process.aclose()
    said = os.read(log[0], 65536).decode()
    assert f"{REFUSED_TEXT}/no/such/library: No such file or directory" in said


async def test_a_path_that_is_not_absolute_is_refused(log, tmp_path, root) -> None:
    process = start(log, tmp_path, Jail(root=root, bound=("etc",)))
    assert await process.wait() == REFUSED_STATUS
    await process.aclose()


async def test_a_claim_on_a_user_is_held_until_the_program_has_ended(log, tmp_path) -> None:
    # Of the default ones, machines of tests that run beside this come and go.
    first = BY_DEFAULT.users.last + 1 + 2 * (os.getpid() % 1_000_000)
    users = UserRange(first, first + 1)
    need("machine-users", found=facts.has_ids(users.first, users.last))
    with lease_user(users) as lease:
        user = lease.user
        # By its path: a confined program may be started once, and to look for it along PATH is to try several times.
        process = start(log, tmp_path, Jail(lease=lease), "/bin/sleep", "1000")
    with lease_user(users) as other:
        assert other.user != user
    await process.aclose()
    with lease_user(users) as again:
        assert again.user == user


@pytest.mark.needs("strace")
async def test_a_jail_is_made_by_the_system_calls_that_are_declared(log, tmp_path, root, monkeypatch) -> None:
    trace, traced = tmp_path / "trace", tmp_path / "traced"
    real = keeper.find_keeper()
    traced.write_text(f'#!/bin/sh\nexec strace -D -f -b execve -o {trace} {real} "$@"\n')
    traced.chmod(0o755)
    users = BY_DEFAULT.users
    with lease_user(users) as lease:
        jail = Jail(root=root, bound=(str(real), "/etc/ld.so.cache"), lease=lease)
        monkeypatch.setattr(keeper, "find_keeper", lambda: traced)
        process = start(log, tmp_path, jail, str(real), "nothing")
    assert await process.wait() == 0
    await process.aclose()
    wait_text(trace, "+++ ")
    calls = declared("keeper")
    others = calls["at work"] | calls["between"]
    seen = called(trace)
    assert sorted(seen - others - calls["jailed"]) == []
    # Those of a user namespace are made for ordinary users.
    assert sorted(calls["jailed"] - seen - {"getuid", "geteuid", "getegid", "write"}) == []

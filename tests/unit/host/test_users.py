"""User ids that are lent: one machine each, nobody's of this host, and free again when their holder is gone."""

from __future__ import annotations

import os
import signal

import pytest

from tests.children import exit_code_of, fork_child
from vmfork.config.isolation import UserRange, parse_users
from vmfork.errors import ConfigError, HostError
from vmfork.host import users

RANGE = UserRange(2_000_300_000, 2_000_300_002)


@pytest.fixture(autouse=True)
def own_leases(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(users, "LEASES", tmp_path / "leases")


def test_each_is_lent_once_and_again_when_it_was_given_back() -> None:
    with users.lease_user(RANGE) as first:
        with users.lease_user(RANGE) as second, users.lease_user(RANGE) as third:
            assert [lease.user for lease in (first, second, third)] == [RANGE.first, RANGE.first + 1, RANGE.last]
            with pytest.raises(HostError, match="all user ids from 2000300000 to 2000300002 are taken"):
                users.lease_user(RANGE)
        with users.lease_user(RANGE) as again:
            assert again.user == RANGE.first + 1


def test_a_claim_lasts_as_long_as_somebody_holds_a_copy_of_its_descriptor() -> None:
    with users.lease_user(RANGE) as lease:
        copy = os.dup(lease.fileno())
    with users.lease_user(RANGE) as other:
        assert other.user == RANGE.first + 1
    os.close(copy)
    with users.lease_user(RANGE) as other:
        assert other.user == RANGE.first


def test_a_holder_that_is_killed_leaves_no_claim() -> None:
    def body() -> None:
        users.lease_user(RANGE)
        os.kill(os.getpid(), signal.SIGKILL)

    assert exit_code_of(fork_child(body)) == -signal.SIGKILL
    with users.lease_user(RANGE) as lease:
        assert lease.user == RANGE.first


def test_the_id_of_a_user_is_passed_over(monkeypatch) -> None:
    monkeypatch.setattr(users, "is_somebody", lambda user: user == RANGE.first)
    with users.lease_user(RANGE) as lease:
        assert lease.user == RANGE.first + 1


def test_users_groups_and_ids_that_they_may_give_away_are_somebodys(tmp_path, monkeypatch) -> None:
    assert users.is_somebody(os.getuid())
    assert users.is_somebody(os.getgid())
    assert not users.is_somebody(RANGE.first)
    subordinate = tmp_path / "subuid"
    subordinate.write_text("somebody:3000000000:65536\ndamaged\nother:x:1\n")
    assert users.read_subordinate((subordinate, tmp_path / "missing")) == ((3_000_000_000, 65_536),)


@pytest.mark.parametrize("text", ["", "1", "1000-2000", "5-3", "70000-69999", "65536-4294967295", "a-b", "1-2-3", 7])
def test_what_is_no_range_or_holds_users_is_refused(text) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_users(text, field="vm.user_ids")
    assert refused.value.hint


def test_a_range_is_read_with_both_ends() -> None:
    assert parse_users("65536-65536", field="vm.user_ids") == UserRange(65_536, 65_536)

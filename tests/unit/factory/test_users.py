"""What is told of the users of a template that goes."""

from __future__ import annotations

from types import SimpleNamespace

from vmfork.factory.users import Users


def fork(name: str, owner_pid: int) -> SimpleNamespace:
    return SimpleNamespace(id=name, owner_pid=owner_pid)


def test_nobody_uses_it() -> None:
    assert Users().describe() == []


def test_forks_run_on_and_what_a_server_holds_ends() -> None:
    users = Users((fork("a", 7), fork("b", 0), fork("c", 9), fork("d", 9)), server=9)
    assert users.describe() == [
        "fork a of it runs on (process 7)",
        "fork b of it runs on (detached)",
        "the VM cache server, process 9, makes it again at its next start; 2 that it keeps ready are ended",
    ]


def test_a_detached_fork_is_no_servers_where_there_is_none() -> None:
    assert Users((fork("b", 0),)).describe() == ["fork b of it runs on (detached)"]

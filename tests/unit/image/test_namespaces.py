"""Where scripts of packages run, by who builds and what this host allows."""

from __future__ import annotations

import os
import subprocess

import pytest

from vmfork.errors import HostError
from vmfork.host import facts
from vmfork.image import namespaces


def choose(monkeypatch, *, uid: int, allowed: bool) -> namespaces.Namespaces:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setattr(namespaces, "_try_out", lambda _argv: allowed)
    monkeypatch.setattr(facts, "has_all_ids", lambda: True)
    return namespaces.choose_namespaces()


def test_root_stays_root_and_an_ordinary_user_becomes_it(monkeypatch):
    root = choose(monkeypatch, uid=0, allowed=True)
    assert root.ids == "real"
    assert "--user" not in root.argv
    user = choose(monkeypatch, uid=1000, allowed=True)
    assert user.ids == "faked"
    assert "--map-root-user" in user.argv


def test_root_of_a_container_may_do_without(monkeypatch):
    assert choose(monkeypatch, uid=0, allowed=False) == namespaces.Namespaces((), "real")


def test_a_user_who_may_have_none_is_told_what_to_do(monkeypatch):
    with pytest.raises(HostError) as caught:
        choose(monkeypatch, uid=1000, allowed=False)
    assert "user.max_user_namespaces" in caught.value.hint


def test_root_of_one_id_alone_is_no_root(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(facts, "has_all_ids", lambda: False)
    monkeypatch.setattr(namespaces, "_try_out", lambda _argv: True)
    assert namespaces.choose_namespaces().ids == "faked"


def test_what_runs_there_has_a_name_and_processes_of_its_own():
    chosen = namespaces.choose_namespaces()
    command = [*chosen.argv, "sh", "-c", "uname -n; id -u; exit 3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert (done.stdout, done.returncode) == ("vmfork\n0\n", 3)

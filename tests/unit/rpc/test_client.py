"""What the client says of an endpoint before it asks anything, and when nobody answers."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import threading

import pytest

from tests.children import exit_code_of, fork_child
from vmfork.errors import Closed, DeadlineExceeded, HostError, WrongContext
from vmfork.rpc import packages
from vmfork.rpc.client import CacheClient
from vmfork.rpc.endpoint import check_socket


def test_what_is_no_server_is_told_apart(tmp_path) -> None:
    with pytest.raises(HostError, match="no VM cache server is at"):
        check_socket(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match="is not a socket"):
        check_socket(tmp_path / "file")


async def test_a_stale_socket_is_no_server(tmp_path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "s"))
    async with CacheClient(tmp_path / "s") as client:
        with pytest.raises(HostError, match="no VM cache server answers") as caught:
            await client.config()
    assert "vmfork factory init" in caught.value.hint


async def test_a_server_that_does_not_speak_is_not_waited_for_for_ever(tmp_path) -> None:
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "s"))
        mute.listen()
        async with CacheClient(tmp_path / "s") as client:
            with pytest.raises((DeadlineExceeded, HostError)):
                await client.get_base_vm(timeout_s=0.2)


async def test_a_closed_client_says_so(tmp_path) -> None:
    client = CacheClient(tmp_path / "s")
    await client.aclose()
    with pytest.raises(Closed):
        await client.status()


def test_a_forked_child_of_a_process_that_used_grpc_is_told_so(tmp_path) -> None:
    async def use() -> None:
        await CacheClient(tmp_path / "s").aclose()

    def use_again() -> None:
        with pytest.raises(WrongContext, match="forked from it") as caught:
            asyncio.run(use())
        assert "spawn" in caught.value.hint

    asyncio.run(use())
    assert exit_code_of(fork_child(use_again)) == 0


def test_grpc_lives_on_when_its_last_user_is_collected(tmp_path) -> None:
    async def use() -> None:
        await CacheClient(tmp_path / "s").aclose()

    for _ in range(3):
        asyncio.run(use())
        gc.collect()
        assert any("_poll_wrapper" in thread.name for thread in threading.enumerate())


@pytest.mark.needs("root")
def test_another_users_server_is_refused_to_root_too(tmp_path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        check_socket(tmp_path / "s")
        os.chown(tmp_path / "s", 65534, 65534)
        with pytest.raises(HostError, match="is that of user 65534"):
            check_socket(tmp_path / "s")


def test_a_server_that_others_may_replace_is_refused(tmp_path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
        folder.chmod(0o1777)
        check_socket(folder / "s")  # the sticky bit: only we may replace it
        folder.chmod(0o777)
        with pytest.raises(HostError, match="others may write to the folder") as caught:
            check_socket(folder / "s")
        assert f"chmod go-w {folder}" in caught.value.hint


def test_missing_packages_are_named(monkeypatch) -> None:
    packages.check_packages()
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "grpc_health" else object())
    with pytest.raises(HostError, match="need grpcio-health-checking") as caught:
        packages.check_packages()
    assert "vmfork[server]" in caught.value.hint

"""A socket can be connected to from the moment it listens, however long its path; what cannot be is told why."""

from __future__ import annotations

import os
import socket

import pytest

from tests.rules.traces import open_descriptors
from vmfork.errors import HostError
from vmfork.host.sockets import PATH_LIMIT, connect_unix, listen_unix


@pytest.fixture(autouse=True)
def no_descriptor_left():
    before = open_descriptors()
    yield
    assert open_descriptors() == before


def path_of_length(folder, length):
    """A path of exactly `length` bytes below `folder`, its folders made."""
    while length - len(os.fsencode(folder)) > 60:
        folder /= "d" * 40
        folder.mkdir()
    return folder / ("s" * (length - len(os.fsencode(folder)) - 1))


def check_conversation(path):
    with listen_unix(path) as listener, connect_unix(path) as client:
        assert not client.getblocking()
        assert not os.get_inheritable(client.fileno())
        assert not os.get_inheritable(listener.fileno())
        server, _ = listener.accept()
        with server:
            client.send(b"hello")
            assert server.recv(5) == b"hello"
        assert path.is_socket()
    path.unlink()


@pytest.mark.parametrize("length", [PATH_LIMIT - 1, PATH_LIMIT, PATH_LIMIT + 1, 200, 1000])
def test_a_path_of_any_length_is_listened_at_and_connected_to(tmp_path, length):
    check_conversation(path_of_length(tmp_path, length))


def test_a_long_path_in_letters_of_several_bytes(tmp_path):
    folder = tmp_path / ("ü" * 45)
    folder.mkdir()
    path = folder / "socket"
    assert len(str(path)) < len(os.fsencode(path))
    check_conversation(path)


@pytest.mark.parametrize("call", [listen_unix, connect_unix])
def test_a_file_name_too_long_for_any_address_is_told_so(tmp_path, call):
    with pytest.raises(HostError, match="path too long"):
        call(tmp_path / ("s" * 110))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["missing", "missing/" + "d" * 120])
@pytest.mark.parametrize("call", [listen_unix, connect_unix])
def test_a_missing_folder_is_told(tmp_path, call, folder):
    with pytest.raises(HostError, match="No such file or directory"):
        call(tmp_path / folder / "socket")


def test_a_path_in_use_is_left_to_its_owner(tmp_path):
    with listen_unix(tmp_path / "socket"):
        with pytest.raises(HostError, match="in use"):
            listen_unix(tmp_path / "socket")
        connect_unix(tmp_path / "socket").close()


def test_a_socket_nobody_listens_at_is_told(tmp_path):
    listen_unix(tmp_path / "socket").close()
    with pytest.raises(HostError, match="refused"):
        connect_unix(tmp_path / "socket")


def test_who_connects_is_not_kept_waiting_by_a_full_backlog(tmp_path):
    clients: list[socket.socket] = []
    with listen_unix(tmp_path / "socket"):
        with pytest.raises(HostError, match="temporarily unavailable"):
            while len(clients) < 1000:
                clients.append(connect_unix(tmp_path / "socket"))
        assert len(clients) > 8
    for client in clients:
        client.close()

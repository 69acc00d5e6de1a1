"""The broker of a detached machine: a small program that owns the machine, and carries its clients.

broker/README.md draws what it does. This is how one is started.
"""

from __future__ import annotations

import os
import socket
import struct
from contextlib import ExitStack
from functools import cache
from typing import TYPE_CHECKING, Self

from vmfork.errors import HostError
from vmfork.host.keeper import TOKEN_SIZE, Answer, receive_answer
from vmfork.host.process import spawn
from vmfork.host.shipped import find_shipped
from vmfork.host.sockets import listen_unix

if TYPE_CHECKING:
    from pathlib import Path

# Where clients connect, in the machine's folder.
BROKER_SOCKET = "broker.sock"
# `struct start_message` of broker/broker.c, without the greeting behind it.
_START = struct.Struct(f"<{TOKEN_SIZE}sQQ")


@cache
def find_broker() -> Path:
    """The broker's binary as the package ships it. Raises `HostError` when it was not built."""
    return find_shipped(f"broker-{os.uname().machine}", what="the broker")


class StartingBroker:
    """Owner of a broker that has no machine yet. Closed before `take`, or when we end, it ends."""

    def __init__(self, channel: socket.socket, pid: int) -> None:
        self.pid = pid
        self._channel = channel

    @classmethod
    async def start(cls, folder: Path, *, log_fd: int) -> Self:
        """A broker for the machine in `folder`, which is no child of ours. Clients can connect to it already.

        What it says of itself goes to `log_fd`. Raises `HostError` when it cannot be started.
        """
        with ExitStack() as always, ExitStack() as on_failure:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            on_failure.enter_context(ours)
            always.enter_context(theirs)
            listener = always.enter_context(listen_unix(folder / BROKER_SOCKET))
            passed = theirs.fileno(), listener.fileno()
            child = spawn([str(find_broker()), *map(str, passed), str(folder)], log_fd=log_fd, pass_fds=passed, env={})
            always.callback(child.wait)  # it has made itself another process by then, or failed
            theirs.close()
            answer, pid, _ = await receive_answer(ours)
            if answer is not Answer.HELLO:
                raise HostError("the machine's broker did not start")
            on_failure.pop_all()
        return cls(ours, pid)

    async def take(self, *, token: bytes, ttl_s: float, idle_ttl_s: float, greeting: bytes) -> None:
        """The broker owns the machine that waits at its keeper under `token`.

        It ends the machine after `ttl_s` seconds, and after `idle_ttl_s` without a client; 0 is no limit. Both count
        from when this is closed. `greeting` is what it answers to HELLO. Raises `HostError` when it could not take the
        machine.
        """
        limits_ms = [round(limit_s * 1000) or int(limit_s > 0) for limit_s in (ttl_s, idle_ttl_s)]
        try:
            self._channel.send(_START.pack(token, *limits_ms) + greeting)
            answer, _, _ = await receive_answer(self._channel)
        except OSError as error:
            raise HostError("the machine's broker is gone") from error
        if answer is not Answer.OK:
            raise HostError("the machine's broker could not take it over")

    def close(self) -> None:
        """A broker that has no machine ends; one that has goes on."""
        self._channel.close()

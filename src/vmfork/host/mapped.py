"""The memory of a process that has a keeper, as it can be copied while the process runs."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from socket import SOCK_SEQPACKET
from typing import TYPE_CHECKING, Self

from vmfork.errors import HostError
from vmfork.host.keeper import Answer, Request, encode_request, receive_answer
from vmfork.host.sockets import connect_unix

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

    from vmfork.host.process import ProcessIdentity

# What the number of the keeper's answer has a bit for, in this order (keeper/memory.h).
_OPENED = 3
_HELD = 2


@contextmanager
def open_marks(process: ProcessIdentity) -> Iterator[int]:
    """/proc/PID/clear_refs, by which marks are taken off the pages of the process; -1 where this host refuses it.

    Whoever started the process may have it, and root.
    """
    try:
        fd = os.open(f"/proc/{process.pid}/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        yield -1
        return
    try:
        # What is open is of the process that had the number by then.
        yield fd if process.is_alive() else -1
    finally:
        os.close(fd)


@dataclass(frozen=True, slots=True)
class MappedMemory:
    """Owner of descriptors. No right over the process is needed to use them.

    `memory_fd` and `pagemap_fd` are those of /proc/PID; `faults_fd` is a userfaultfd of the process, or -1 where its
    kernel cannot note writes. `held` are the files that its memory is mapped from, lowest first.
    """

    memory_fd: int
    pagemap_fd: int
    faults_fd: int
    held: tuple[int, ...]

    @classmethod
    async def ask(cls, keeper: Path) -> Self:
        """That of the process whose keeper listens at `keeper`.

        Raises `HostError` when this host does not let us, or the process is kept by an older vmfork.
        """
        with connect_unix(keeper, kind=SOCK_SEQPACKET) as sock, ExitStack() as on_failure:
            sock.send(encode_request(Request.MEMORY))
            answer, which, passed = await receive_answer(sock)
            for fd in passed:
                on_failure.callback(os.close, fd)
            if answer is not Answer.OK:
                raise HostError(
                    "the memory of this machine cannot be copied: it was started by an older vmfork",
                    hint="start it again with this one",
                )
            fds = iter(passed)
            opened = [next(fds, -1) if which & 1 << index else -1 for index in range(_OPENED + _HELD)]
            if min(opened[:2]) < 0:
                raise HostError(
                    "the memory of this machine cannot be copied: this host lets nobody read it",
                    hint="let vmfork start it with isolation, or allow its user to trace processes (ptrace(2))",
                )
            on_failure.pop_all()
        memory_fd, pagemap_fd, faults_fd, *held = opened
        return cls(memory_fd, pagemap_fd, faults_fd, tuple(fd for fd in held if fd >= 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for fd in (self.memory_fd, self.pagemap_fd, self.faults_fd, *self.held):
            if fd >= 0:
                os.close(fd)

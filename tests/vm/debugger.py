"""A debugger on a process of x86-64: whatever its code could ask of the kernel is asked, by one of its own threads.

No code is written into it. Its main thread is set upon a `syscall` instruction that it has, and makes one step.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import signal
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests.rules.capabilities import need

if TYPE_CHECKING:
    from collections.abc import Iterator

_SEIZE, _INTERRUPT, _GETREGS, _SETREGS, _SINGLESTEP, _DETACH = 0x4206, 0x4207, 12, 13, 9, 17
_WALL = 0x40000000
_SYSCALL = b"\x0f\x05"
# unistd_64.h
CALLS = {
    "mmap": 9, "mprotect": 10, "pwrite64": 18, "kill": 62, "ftruncate": 77, "fchmod": 91, "ptrace": 101, "openat": 257,
    "fallocate": 285, "process_vm_readv": 310,
}  # fmt: skip
_REGISTERS = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi", "orig_rax",
    "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
)  # fmt: skip


class Registers(ctypes.Structure):
    """sys/user.h: struct user_regs_struct."""

    _fields_ = [(name, ctypes.c_ulonglong) for name in _REGISTERS]


_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def _ptrace(request: int, pid: int, data: object = None) -> None:
    if _libc.ptrace(request, pid, None, data) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Debugged:
    """A process that stands still but for what it is made to ask."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._before = Registers()
        _ptrace(_GETREGS, pid, ctypes.byref(self._before))
        self._instruction = _find_syscall(pid)
        self._page = self.call("mmap", 0, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE, 0x22, -1, 0)  # anonymous

    def call(self, name: str, *arguments: int | bytes) -> int:
        """The process made the system call. Its value, or the negative number of the error. Bytes are in its memory."""
        registers = Registers.from_buffer_copy(self._before)
        placed, at = [], 0
        for argument in arguments:
            if isinstance(argument, bytes):
                self._write(self._page + at, argument + b"\0")
                placed.append(self._page + at)
                at += len(argument) + 16 & ~7
            else:
                placed.append(argument & 2**64 - 1)
        for register, value in zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), placed, strict=False):
            setattr(registers, register, value)
        # No system call was interrupted, as far as the kernel knows: it would go on with it.
        registers.orig_rax, registers.rax, registers.rip = 2**64 - 1, CALLS[name], self._instruction
        _ptrace(_SETREGS, self._pid, ctypes.byref(registers))
        _ptrace(_SINGLESTEP, self._pid)
        _wait_stopped(self._pid)
        _ptrace(_GETREGS, self._pid, ctypes.byref(registers))
        return ctypes.c_longlong(registers.rax).value

    def release(self) -> None:
        """The process goes on where it was."""
        _ptrace(_SETREGS, self._pid, ctypes.byref(self._before))
        _ptrace(_DETACH, self._pid)

    def _write(self, address: int, data: bytes) -> None:
        with Path(f"/proc/{self._pid}/mem").open("r+b", buffering=0) as memory:
            memory.seek(address)
            memory.write(data)


@contextmanager
def debugged(pid: int) -> Iterator[Debugged]:
    """In the block the process of `pid` stands still; a named skip where it may not be traced."""
    need("debugging", found=platform.machine() == "x86_64")
    try:
        _ptrace(_SEIZE, pid)
    except PermissionError:
        need("debugging", found=False)
    _ptrace(_INTERRUPT, pid)
    _wait_stopped(pid)
    process = Debugged(pid)
    yield process
    with suppress(ProcessLookupError):  # it was ended for what it asked
        process.release()


def _wait_stopped(pid: int) -> None:
    """Raises `ProcessLookupError` when it has ended in place of it; its status stays for whoever reaps it."""
    how = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT | _WALL)
    if how is None or how.si_code in (os.CLD_EXITED, os.CLD_KILLED, os.CLD_DUMPED):
        raise ProcessLookupError(errno.ESRCH, "it has ended")
    _, status = os.waitpid(pid, os.WUNTRACED | _WALL)
    assert os.WIFSTOPPED(status)
    assert os.WSTOPSIG(status) == signal.SIGTRAP, signal.Signals(os.WSTOPSIG(status))


def _find_syscall(pid: int) -> int:
    """Where a `syscall` instruction is in what the process may run."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights, *rest = line.split()
            if rights.startswith("r-x") and "libc.so" in rest[-1]:
                start, end = (int(part, 16) for part in span.split("-"))
                memory.seek(start)
                found = memory.read(end - start).find(_SYSCALL)
                if found >= 0:
                    return start + found
    raise AssertionError("its libc has no system call")

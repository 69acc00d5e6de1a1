"""What a command in a guest gave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmfork.errors import ExecError
from vmfork.machine.decoding import PLAIN, Decoding

if TYPE_CHECKING:
    from vmfork.wire.message import Exceeded

# Bytes of each stream in the representation: a test that fails shows it, and so does a prompt.
_SHOWN = 200
_KILLED = {"cpu": ": it used up its processor time", "memory": ": it wanted more memory than its limit"}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ExecResult:
    """The end of one command.

    `exit_code` follows the shell: 128+n for signal n. `duration_s` was measured in the guest; so were `cpu_s`, the
    processor time of the program and all it waited for, and `peak_memory_bytes`, the memory of its largest process.
    With `limits` both are of all that it started. Where the machine's agent is too old to tell, they are `None`.
    `exceeded` is `cpu` or `memory` where it was killed for that limit. `stdout` and `stderr` are text, as `decoding`
    says (UTF-8, undecodable bytes replaced); the exact bytes are in `stdout_bytes` and `stderr_bytes`. `repr` shows the
    beginning of both.
    """

    argv: tuple[str, ...]
    exit_code: int
    duration_s: float
    stdout_bytes: bytes = b""
    stderr_bytes: bytes = b""
    cpu_s: float | None = None
    peak_memory_bytes: int | None = None
    exceeded: Exceeded = ""
    decoding: Decoding = PLAIN

    @property
    def stdout(self) -> str:
        """What it wrote to standard output, as text."""
        return self.decoding.decode(self.stdout_bytes)

    @property
    def stderr(self) -> str:
        """What it wrote to standard error, as text."""
        return self.decoding.decode(self.stderr_bytes)

    @property
    def ok(self) -> bool:
        """Whether its exit status is 0."""
        return self.exit_code == 0

    def __repr__(self) -> str:
        shown = "".join(
            f", {name}={data[:_SHOWN].decode(errors='replace')!r}{'…' if len(data) > _SHOWN else ''}"
            for name, data in (("stdout", self.stdout_bytes), ("stderr", self.stderr_bytes))
            if data
        )
        return f"ExecResult(argv={self.argv!r}, exit_code={self.exit_code}, duration_s={self.duration_s:.3f}{shown})"

    def check(self) -> ExecResult:
        """This result. Raises `ExecError`, with what the command wrote, when it did not succeed."""
        if self.exit_code == 0:
            return self
        raise ExecError(
            self.argv,
            self.exit_code,
            f"exit status {self.exit_code}{_KILLED.get(self.exceeded, '')}",
            stdout=self.stdout_bytes,
            stderr=self.stderr_bytes,
        )

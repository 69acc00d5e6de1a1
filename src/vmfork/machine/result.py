"""What a command in a guest gave."""

from __future__ import annotations

from dataclasses import dataclass, field

from vmfork.errors import ExecError


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecResult:
    """The end of one command.

    `exit_code` follows the shell: 128+n for signal n. `duration_s` was measured in the guest. `stdout` and `stderr` are
    text (UTF-8, undecodable bytes replaced); the exact bytes are in `stdout_bytes` and `stderr_bytes`.
    """

    argv: tuple[str, ...]
    exit_code: int
    duration_s: float
    stdout_bytes: bytes = field(repr=False, default=b"")
    stderr_bytes: bytes = field(repr=False, default=b"")

    @property
    def stdout(self) -> str:
        """What it wrote to standard output, as text."""
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr(self) -> str:
        """What it wrote to standard error, as text."""
        return self.stderr_bytes.decode(errors="replace")

    @property
    def ok(self) -> bool:
        """Whether its exit status is 0."""
        return self.exit_code == 0

    def check(self) -> ExecResult:
        """This result, when the command succeeded; else `ExecError` with what it wrote."""
        if self.exit_code == 0:
            return self
        raise ExecError(
            self.argv,
            self.exit_code,
            f"exit status {self.exit_code}",
            stdout=self.stdout_bytes,
            stderr=self.stderr_bytes,
        )

"""What a command in a guest gave."""

from __future__ import annotations

from dataclasses import dataclass

from vmfork.errors import ExecError

# Bytes of each stream in the representation: a test that fails shows it, and so does a prompt.
_SHOWN = 200


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ExecResult:
    """The end of one command.

    `exit_code` follows the shell: 128+n for signal n. `duration_s` was measured in the guest. `stdout` and `stderr` are
    text (UTF-8, undecodable bytes replaced); the exact bytes are in `stdout_bytes` and `stderr_bytes`. `repr` shows the
    beginning of both.
    """

    argv: tuple[str, ...]
    exit_code: int
    duration_s: float
    stdout_bytes: bytes = b""
    stderr_bytes: bytes = b""

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
            f"exit status {self.exit_code}",
            stdout=self.stdout_bytes,
            stderr=self.stderr_bytes,
        )

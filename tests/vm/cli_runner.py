"""The command line as its users have it: a process, its streams, its exit status, and what is left of it."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

LIMIT_S = 120
COMMAND = (sys.executable, "-m", "vmfork")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended. No traceback is in `err`: that is asserted where one is made."""

    status: int
    raw: bytes
    err: str

    def __post_init__(self) -> None:
        assert "Traceback" not in self.err, self.err

    @property
    def out(self) -> str:
        return self.raw.decode()

    def check(self) -> Outcome:
        assert self.status == 0, self
        return self


def environment(changes: dict[str, str] | None = None) -> dict[str, str]:
    return {**os.environ, **(changes or {})}


def vmfork(*argv: str, env: dict[str, str] | None = None, **options) -> Outcome:
    """`vmfork` with these arguments has ended; see `run`."""
    return run(*COMMAND, *argv, env=env, **options)


def run(*argv: str, env: dict[str, str] | None = None, limit_s: float = LIMIT_S, **options) -> Outcome:
    """The command has ended. `options` are those of `subprocess.run`; its input is empty unless they say otherwise."""
    if "input" not in options:
        options.setdefault("stdin", subprocess.DEVNULL)

    options |= {"capture_output": True, "timeout": limit_s}
    done = subprocess.run(argv, check=False, env=environment(env), **options)
    # A user who may not open /dev/kvm is told that TCG is used; no command that is run to its end here is about that.
    told = [line for line in done.stderr.decode().splitlines(keepends=True) if not line.startswith("note: /dev/kvm")]
    return Outcome(done.returncode, done.stdout, "".join(told))


class Running:
    """Owner of a command that runs, in a process group of its own as a shell would give it."""

    def __init__(self, *argv: str, env: dict[str, str] | None = None, command=COMMAND, **options) -> None:
        options.setdefault("stdin", subprocess.DEVNULL)
        self.process = subprocess.Popen(
            [*command, *argv],
            env=environment(env),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
            **options,
        )
        self._seen = {1: b"", 2: b""}

    def wait_for(self, text: str, *, fd: int = 2) -> None:
        """The command has written `text` to that descriptor."""
        stream = self.process.stdout if fd == 1 else self.process.stderr
        end = time.monotonic() + LIMIT_S
        while text.encode() not in self._seen[fd]:
            ready, _, _ = select.select([stream], [], [], max(0, end - time.monotonic()))
            assert ready, f"no {text!r} in {self._seen}"
            data = os.read(stream.fileno(), 65536)
            assert data, f"ended without {text!r}: {self._seen}"
            self._seen[fd] += data

    def seen(self, fd: int) -> str:
        """What it wrote to that descriptor, as far as it was waited for."""
        return self._seen[fd].decode()

    def interrupt(self, number: int) -> None:
        """The signal went to the whole process group, as a terminal sends it."""
        os.killpg(self.process.pid, number)

    def end(self, *, input: bytes | None = None) -> Outcome:  # noqa: A002 - the name subprocess gave it
        out, err = self.process.communicate(input, timeout=LIMIT_S)
        return Outcome(self.process.returncode, self._seen[1] + out, (self._seen[2] + err).decode())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_failure: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        with self.process:  # waits for it and closes its pipes
            pass


def left_of(runtime: Path) -> list[str]:
    """Everything of a runtime folder that is not a template in force: machines, mounts, layers, processes.

    A process belongs to it when its environment names it, as a command's does, or when it has something below it open:
    what commands start does not get their environment.
    """
    found = [str(path) for part in ("vms", "checkpoints") for path in (runtime / part).glob("*")]
    kept = {str(link.resolve()) for link in (runtime / "templates").glob("*/current")}
    below = (path for part in ("templates", "layers") for path in (runtime / part).glob("*/*"))
    made = {str(path) for path in below if path.is_dir() and not path.is_symlink()}
    mounted = {line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if str(runtime) in line}
    found += sorted((made | mounted) - kept - {str(runtime)})
    return found + processes_of(runtime)


def belongs(process: Path, runtime: Path) -> bool:
    """Whether the process, a folder of /proc, is of that runtime folder. Raises `OSError` when it has ended."""
    if f"VMFORK_RUNTIME_DIR={runtime}\0".encode() in (process / "environ").read_bytes():
        return True
    return any(os.readlink(fd).startswith(f"{runtime}/") for fd in (process / "fd").iterdir())


def processes_of(runtime: Path) -> list[str]:
    """The command lines of all processes that belong to that runtime folder, but ours."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int(folder.name) != os.getpid() and belongs(folder, runtime):
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue  # it has ended
    return [line for line in found if line]

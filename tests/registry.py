"""Debian's `docker-registry` on the loopback, as its users run it: with a password, with TLS, or with neither."""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests.issuer import NAME, SERVICE
from tests.ports import free_port
from tests.rules.capabilities import find_program
from vmfork.late import import_late

if TYPE_CHECKING:
    import threading
    from collections.abc import Awaitable, Callable, Iterator

    import pytest

    from tests.issuer import Issuer
    from vmfork.oci.descriptor import Descriptor

_BEGIN_LIMIT_S = 60
# Of a thousand requests; it says two lines of each.
_PIPE_SIZE = 1 << 20
USER, PASSWORD = "me", "secret"
# That password as htpasswd -B writes it (bcrypt).
HTPASSWD = "me:$2b$04$uwHjHcTyZLZ5TiNpSRcDWu3fyPXmARwmZyNYpx2Io0rQIGAR99Mtq\n"


class Registry:
    """A registry that runs. `host` is what its references begin with."""

    def __init__(self, process: subprocess.Popen[bytes], host: str, folder: Path) -> None:
        self.process = process
        self.host = host
        self.folder = folder

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def kill_behind(self, monkeypatch: pytest.MonkeyPatch, verb: str, media_type: str) -> None:
        """From now on it is killed behind the first content of that type that is `put` or `read`, as `verb` says."""
        self._act_behind(monkeypatch, verb, self.kill, media_type=media_type)

    def stop_behind(self, monkeypatch: pytest.MonkeyPatch, verb: str, note: Callable[[], None]) -> None:
        """From now on it says nothing more behind the first content that was `put` or taken, as `verb` says."""

        def stop() -> None:
            self.process.send_signal(signal.SIGSTOP)
            note()

        self._act_behind(monkeypatch, verb, stop)

    def _act_behind(
        self, monkeypatch: pytest.MonkeyPatch, verb: str, act: Callable[[], None], *, media_type: str = ""
    ) -> None:
        kind = import_late("vmfork.oci.registry", "Repository")
        work = getattr(kind, verb)

        def acting(repository: object, descriptor: Descriptor, *more: object) -> object:
            done = work(repository, descriptor, *more)
            if media_type in ("", descriptor.media_type):
                act()
            return done

        monkeypatch.setattr(kind, verb, acting)

    @property
    def blobs(self) -> list[Path]:
        """The content that it has."""
        return [*self.folder.glob("docker/registry/v2/blobs/sha256/*/*/data")]


async def give_up_behind(registry: Registry, silent: threading.Event, work: Awaitable[object]) -> None:
    """A second after it said nothing more whoever waits for it gives up, and has ended at once."""
    waiting = asyncio.ensure_future(work)
    try:
        assert await asyncio.to_thread(silent.wait, 60)
        await asyncio.sleep(1)
        waiting.cancel()
        begun = time.monotonic()
        with suppress(asyncio.CancelledError):
            await waiting
        assert waiting.cancelled()
        assert time.monotonic() - begun < 10  # a request may wait for two minutes
    finally:
        registry.process.send_signal(signal.SIGCONT)


@contextmanager
def running_registry(
    folder: Path, *, htpasswd: str = "", tls: tuple[Path, Path] | None = None, issuer: Issuer | None = None
) -> Iterator[Registry]:
    """A registry whose storage is in `folder` listens."""
    folder.mkdir(exist_ok=True)
    port = free_port()
    lines = ["version: 0.1", "log:", "  level: info", "storage:", "  filesystem:", f"    rootdirectory: {folder}"]
    lines += ["http:", f"  addr: 127.0.0.1:{port}"]
    if tls is not None:
        lines += ["  tls:", f"    certificate: {tls[0]}", f"    key: {tls[1]}"]
    if htpasswd:
        (folder / "htpasswd").write_text(htpasswd)
        lines += ["auth:", "  htpasswd:", "    realm: test", f"    path: {folder / 'htpasswd'}"]
    if issuer is not None:
        lines += ["auth:", "  token:", f"    realm: {issuer.url}", f"    service: {SERVICE}", f"    issuer: {NAME}"]
        lines += [f"    rootcertbundle: {issuer.certificate}"]
    (folder / "config.yml").write_text("\n".join(lines) + "\n")
    program = find_program("docker-registry")
    assert program is not None
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)  # nobody reads on, and what it cannot say it waits for
    process = subprocess.Popen(
        [program, "serve", str(folder / "config.yml")], stdout=writing, stderr=writing, env={}, start_new_session=True
    )
    os.close(writing)
    try:
        _wait_for(reading, b"listening on")
        yield Registry(process, f"127.0.0.1:{port}", folder)
    finally:
        process.kill()
        process.wait()
        os.close(reading)


def _wait_for(fd: int, text: bytes) -> None:
    """The text was written there."""
    seen = b""
    while text not in seen:
        ready, _, _ = select.select([fd], [], [], _BEGIN_LIMIT_S)
        assert ready, seen
        more = os.read(fd, 65536)
        assert more, seen
        seen += more


def lines_to(host: str) -> list[str]:
    """Connections of this process to the registry, by the kernel's table."""
    port = f":{int(host.partition(':')[2]):04X}"
    ours = set()
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            ours.add(os.readlink(link))
    rows = [row.split() for row in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    return [row[2] for row in rows if row[2].endswith(port) and f"socket:[{row[9]}]" in ours]


def keep_repositories(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """All repositories that are made from now on: what is kept is not closed by being forgotten."""
    made: list[object] = []
    kind = import_late("vmfork.oci.registry", "Repository")
    make = kind.__init__

    def note(repository: object, *given: object, **more: object) -> None:
        made.append(repository)
        make(repository, *given, **more)

    monkeypatch.setattr(kind, "__init__", note)
    return made

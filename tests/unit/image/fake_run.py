"""What stands for a run of mmdebstrap, and for what it would write."""

from __future__ import annotations

import asyncio
import io
import lzma
import tarfile
from typing import TYPE_CHECKING

from vmfork.image import debootstrap, recipe

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

MODULE = "usr/lib/modules/6.12/kernel/drivers/net/virtio_net.ko.xz"
MEMBERS = {
    "./usr/bin/dash": b"x",
    "./usr/share/doc/dash/copyright": b"x",
    "./etc/passwd": b"root:*:0:0:root:/root:/bin/bash\n",
    "./etc/group": b"root:*:0:\nshadow:*:42:\n",
    "./.vmfork/installed": b"dash 1:2-3\nperl-base 5\n",
    "./.vmfork/needed": b"dash\n",
    "./.vmfork/kernel-package": b"linux-image-6.12 6.12-1\n",
    "./.vmfork/kernel/boot/vmlinuz-6.12": b"kernel",
    f"./.vmfork/kernel/{MODULE}": lzma.compress(b"\0depends=\0"),
    "./.vmfork/kernel/usr/lib/modules/6.12/modules.builtin": "".join(
        f"kernel/{name}.ko\n" for name in recipe.MODULES if name != "virtio_net"
    ).encode(),
}


class FakeRun:
    """Writes the tar that mmdebstrap would write, once it may."""

    def __init__(self) -> None:
        self.count = 0
        self.started = asyncio.Event()
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def __call__(self, _suite, _packages, tar, *, tmp, report) -> None:
        self.count += 1
        self.started.set()
        assert tmp.is_dir()
        report("downloading packages", 0.5)
        await self.may_end.wait()
        with tarfile.open(tar, "w") as file:
            for name, body in MEMBERS.items():
                info = tarfile.TarInfo(name)
                info.size = len(body)
                file.addfile(info, io.BytesIO(body))


def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeRun:
    """From now on it runs in place of mmdebstrap, and images have an agent of nothing."""
    agent = tmp_path / "agent"
    agent.write_bytes(b"agent")
    monkeypatch.setattr(recipe, "find_agent", lambda: agent)
    monkeypatch.setattr(debootstrap, "find_mmdebstrap", lambda: "mmdebstrap")
    fake = FakeRun()
    monkeypatch.setattr(debootstrap, "run_mmdebstrap", fake)
    return fake

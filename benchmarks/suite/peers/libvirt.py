"""A libvirt daemon of our own, as an ordinary user, in a folder of its own: it touches nothing of the host's libvirt.

libvirtd run by root would use the host's folders; run by another user it keeps to the XDG folders it is given.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Self

from benchmarks.suite.figures import NotRun
from benchmarks.suite.peers.install import find_program
from vmfork.owner import Owner

if TYPE_CHECKING:
    from pathlib import Path

# As root the daemon is run as this user, who owns nothing else (base-passwd).
_USER = "nobody"
_START_LIMIT_S = 20.0
_END_LIMIT_S = 10.0
_COMMAND_LIMIT_S = 120.0

_DOMAIN = """\
<domain type='{kind}'>
  <name>bench</name>
  <memory unit='MiB'>{memory_mib}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initramfs}</initrd>
    <cmdline>{arguments}</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='{cpu}'/>
  <on_poweroff>destroy</on_poweroff><on_reboot>destroy</on_reboot><on_crash>destroy</on_crash>
  <devices>
    <emulator>{emulator}</emulator>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    <serial type='null'/>
    <channel type='unix'>
      <source mode='bind' path='{socket}'/>
      <target type='virtio' name='{port}'/>
    </channel>
  </devices>
</domain>
"""


class Daemon(Owner):
    """Owner of a running libvirtd and of the folder it lives in. `aclose()` ends its domain and itself, by pid."""

    def __init__(self, folder: Path, prefix: list[str], virsh: str, log: int) -> None:
        self.folder = folder
        self._prefix = prefix
        self._virsh = virsh
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(folder),
            "LC_ALL": "C",
            **{
                name: str(folder / name.lower())
                for name in ("XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME")
            },
        }

    @classmethod
    async def open(cls, folder: Path) -> Self:
        """A daemon that answers. `NotRun` where it is not installed, or does not start."""
        found = {name: find_program(name) for name in ("libvirtd", "virsh", "setpriv")}
        libvirtd, virsh, setpriv = found.values()
        if libvirtd is None or virsh is None or setpriv is None:
            missing = ", ".join(name for name, path in found.items() if path is None)
            raise NotRun(f"{missing} not found (Debian packages libvirt-daemon, libvirt-clients)")
        prefix = [setpriv, "--pdeathsig", "KILL", "--"]
        if os.geteuid() == 0:
            prefix[1:1] = ["--reuid", _USER, "--regid", "nogroup", "--clear-groups"]
        log = os.open(folder / "libvirtd.log", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        daemon = cls(folder, prefix, virsh, log)
        async with AsyncExitStack() as on_failure:
            on_failure.push_async_callback(daemon.aclose)
            daemon._start(libvirtd)
            await daemon._wait_answering()
            on_failure.pop_all()
        return daemon

    def define(self, **values: object) -> Path:
        """The description of the domain, as a file that the daemon's user can read."""
        path = self.folder / "domain.xml"
        path.write_text(_DOMAIN.format(**values))
        self.own()
        return path

    def own(self) -> None:
        """What is in the folder belongs to the daemon's user."""
        if os.geteuid() != 0:
            return
        for path in (self.folder, *self.folder.rglob("*")):
            with suppress(FileNotFoundError):
                shutil.chown(path, _USER, "nogroup")

    def virsh(self, *arguments: str) -> None:
        """It was done. `NotRun` with what virsh said where it failed. Blocks, as what it is compared with does."""
        done = subprocess.run(
            [*self._prefix, self._virsh, "--quiet", "--connect", "qemu:///session", *arguments],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            timeout=_COMMAND_LIMIT_S,
        )
        if done.returncode:
            said = " ".join(done.stdout.decode(errors="replace").split())
            raise NotRun(f"virsh {arguments[0]}: {said}")

    def _start(self, libvirtd: str) -> None:
        for name in ("XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
            os.makedirs(self._environment[name], mode=0o700, exist_ok=True)
        self.own()
        self._process = subprocess.Popen(
            [*self._prefix, libvirtd],
            env=self._environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )

    async def _wait_answering(self) -> None:
        """virsh would start a daemon itself where none listens: it is asked once ours does."""
        assert self._process is not None
        socket = self.folder / "xdg_runtime_dir" / "libvirt" / "libvirt-sock"
        try:
            async with asyncio.timeout(_START_LIMIT_S):
                while not socket.exists():
                    if self._process.poll() is not None:
                        raise NotRun(f"libvirtd ended: {self._last_words()}")
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise NotRun(f"libvirtd did not listen within {_START_LIMIT_S:g} s: {self._last_words()}") from None
        self.virsh("version")

    def _last_words(self) -> str:
        lines = (self.folder / "libvirtd.log").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it says nothing"

    async def aclose(self) -> None:
        process, self._process = self._process, None
        os.close(self._log)
        if process is None:
            return
        try:
            with suppress(NotRun, subprocess.SubprocessError):
                self.virsh("destroy", "bench")
        finally:
            process.terminate()
            try:
                await asyncio.wait_for(asyncio.to_thread(process.wait), _END_LIMIT_S)
            except TimeoutError:
                process.kill()
                process.wait()

"""Servers of a static list on this host, each a process with places of its own: `vmfork cluster serve`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.certificates import make_authority, make_certificate
from vmfork.machine.folder import list_records, sweep_vms
from vmfork.store import TemplateStore

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vmfork.config import Places

_END_LIMIT_S = 120.0


def make_access(folder: Path) -> tuple[dict[str, str], list[str]]:
    """A certificate for either end of a line, and its authority: as `Cluster.at` is given them, and as options."""
    authority = make_authority(folder, "authority")
    pair = make_certificate(folder, "end", authority)
    access = {"ca": authority.certificate, "certificate": pair.certificate, "key": pair.key}
    return access, ["--ca", access["ca"], "--cert", access["certificate"], "--key", access["key"]]


@dataclass
class Servers:
    """Those that run, by their addresses. `access` are options by which they let callers in."""

    access: list[str]
    logs: Path
    processes: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    places: dict[str, Places] = field(default_factory=dict)

    def start(
        self,
        places: Places,
        *,
        listen: str = "127.0.0.1:0",
        labels: Mapping[str, str] | None = None,
        more_env: Mapping[str, str] | None = None,
    ) -> str:
        """The address of one more."""
        command = [sys.executable, "-m", "vmfork", "cluster", "serve", "--listen", listen, "--json", *self.access]
        command += [f"--label={key}={value}" for key, value in (labels or {}).items()]
        env = {**os.environ, "VMFORK_HOME": str(places.home), "VMFORK_RUNTIME_DIR": str(places.runtime)}
        env |= more_env or {}
        log = self.logs / f"server-{len(self.places)}.log"
        with log.open("a") as errors:
            process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert process.stdout is not None
        with process.stdout as out:
            line = out.readline()
        if not line:
            process.wait()
            raise AssertionError(log.read_text())
        address: str = json.loads(line)["address"]
        self.processes[address], self.places[address] = process, places
        return address

    def kill(self, address: str) -> None:
        """As one that crashes."""
        process = self.processes.pop(address)
        process.kill()
        process.wait()

    def end(self, address: str) -> None:
        """In order."""
        process = self.processes.pop(address)
        process.send_signal(signal.SIGTERM)
        assert process.wait(_END_LIMIT_S) == 0, address

    def list_machines(self, address: str) -> list[str]:
        """Those that are there, whatever the server says."""
        return [each.id for each in list_records(self.places[address].vms)]

    def close(self, *, keep: Places) -> None:
        """All have ended in order; nothing of them is left but what `keep` has."""
        for address in [*self.processes]:
            self.end(address)
        for places in self.places.values():
            sweep_vms(places.vms)
            if places is not keep:
                TemplateStore(places.templates).clear()  # as root each is a mount

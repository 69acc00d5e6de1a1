"""Where vmfork keeps things: in `home` what lasts, in `runtime` what ends with the host.

```
HOME/images/          images                      RUNTIME/templates/    template RAM and state
HOME/verdicts/        what KVM can do here        RUNTIME/vms/          running VMs
HOME/emulators/       what QEMU was built with
HOME/recipes/         how templates were made
```
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmfork.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Places:
    """Two folders that isolate one vmfork from another completely. Both absolute; made on first use, mode 0700."""

    home: Path
    runtime: Path

    def __post_init__(self) -> None:
        for name in ("home", "runtime"):
            given = getattr(self, name)
            if not isinstance(given, (str, Path)) or not os.path.isabs(given):
                raise ConfigError(f"places.{name}", given, f"{given!r} is not an absolute path", hint="give a Path")
            object.__setattr__(self, name, Path(given))

    @property
    def images(self) -> Path:
        """What machines boot, under HOME: it lasts."""
        return self.home / "images"

    @property
    def emulators(self) -> Path:
        """What each emulator said that it was built with, under HOME: it lasts."""
        return self.home / "emulators"

    @property
    def recipes(self) -> Path:
        """How templates were made, under HOME: they can be made again after the host was restarted."""
        return self.home / "recipes"

    @property
    def templates(self) -> Path:
        """Frozen machines, under RUNTIME: their RAM goes with the host's."""
        return self.runtime / "templates"

    @property
    def vms(self) -> Path:
        """A folder for each running machine, under RUNTIME."""
        return self.runtime / "vms"


def find_places(environ: Mapping[str, str] | None = None, *, uid: int | None = None) -> Places:
    """The folders in force: `VMFORK_HOME` and `VMFORK_RUNTIME_DIR`, else the system's as root, else the user's own.

    An ordinary user's runtime folder lies in the shared-memory tmpfs, since template RAM must. Others may write to that
    tmpfs, but cannot get at the folder: it is made 0700, and refused when another user owns it.
    """
    env = os.environ if environ is None else environ
    uid = os.getuid() if uid is None else uid
    if uid == 0:
        home, runtime = Path("/var/lib/vmfork"), Path("/run/vmfork")
    else:
        data = env.get("XDG_DATA_HOME") or os.path.join(env.get("HOME") or os.path.expanduser("~"), ".local", "share")
        home, runtime = Path(data, "vmfork"), Path(f"/dev/shm/vmfork-{uid}")  # noqa: S108 - see above
    return Places(
        Path(env.get("VMFORK_HOME") or home).absolute(),
        Path(env.get("VMFORK_RUNTIME_DIR") or runtime).absolute(),
    )

"""Where vmfork keeps things: in `home` what lasts, in `runtime` what ends with the host.

```
HOME/images/          images                      RUNTIME/templates/    template RAM and state
HOME/verdicts/        what KVM can do here        RUNTIME/vms/          running VMs
HOME/emulators/       what QEMU was built with    RUNTIME/layers/       machines between the steps of recipes
HOME/recipes/         how templates were made     RUNTIME/checkpoints/  what VMs that stand alone can go back to
HOME/persisted/       templates kept on disk      RUNTIME/isolation.json    what emulators can be kept by here
HOME/disks/           roots that do not lie in memory
```
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmfork.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping


_LAYERS = "layers"


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
    def disks(self) -> Path:
        """The disks of images whose root does not lie in memory, beside them: they last."""
        return self.home / "disks"

    @property
    def emulators(self) -> Path:
        """What each emulator said that it was built with, under HOME: it lasts."""
        return self.home / "emulators"

    @property
    def recipes(self) -> Path:
        """How templates were made, under HOME: they can be made again after the host was restarted."""
        return self.home / "recipes"

    @property
    def persisted(self) -> Path:
        """Templates that are kept on disk too, under HOME: they come back after the host was restarted."""
        return self.home / "persisted"

    @property
    def templates(self) -> Path:
        """Frozen machines, under RUNTIME: their RAM goes with the host's."""
        return self.runtime / "templates"

    @property
    def checkpoints(self) -> Path:
        """A folder for each VM that stands alone and can go back to something, under RUNTIME."""
        return self.runtime / "checkpoints"

    @property
    def layers(self) -> Path:
        """Machines as they were between the steps of recipes, under RUNTIME: a cache (store/layers.py)."""
        return self.runtime / _LAYERS

    @property
    def vms(self) -> Path:
        """A folder for each running machine, under RUNTIME."""
        return self.runtime / "vms"


def layers_beside(vms: Path) -> Path:
    """The folder of layers in the instance whose machines are in `vms`."""
    return vms.with_name(_LAYERS)


# Template RAM must lie in memory, and XDG_RUNTIME_DIR is too small for it: a tenth of the host's.
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - see `find_places`


def find_places(environ: Mapping[str, str] | None = None, *, uid: int | None = None) -> Places:
    """The folders in force: `VMFORK_HOME` and `VMFORK_RUNTIME_DIR`, else the system's as root, else the user's own.

    An ordinary user's runtime folder lies in the shared-memory tmpfs: `vmfork-UID`. Others may write to that tmpfs, but
    cannot get at the folder: it is made 0700, and refused when another user owns it. Nor can they deny it by making it
    first: then it is `vmfork-UID.1`, or the first further number that nobody has. One that is this user's comes first,
    so that all his commands find the same, also when the other name is free again.
    """
    env = os.environ if environ is None else environ
    uid = os.getuid() if uid is None else uid
    if uid == 0:
        home, runtime = Path("/var/lib/vmfork"), Path("/run/vmfork")
    else:
        data = env.get("XDG_DATA_HOME") or os.path.join(env.get("HOME") or os.path.expanduser("~"), ".local", "share")
        home, runtime = Path(data, "vmfork"), _find_runtime(uid)
    return Places(
        Path(env.get("VMFORK_HOME") or home).absolute(),
        Path(env.get("VMFORK_RUNTIME_DIR") or runtime).absolute(),
    )


def _find_runtime(uid: int) -> Path:
    path = _SHARED_MEMORY / f"vmfork-{uid}"
    if _is_folder_of(path, uid):
        return path
    numbers = {0 if not number else int(number) for number in _list_numbers(path.name)}
    ours = (number for number in sorted(numbers) if _is_folder_of(_number(path, number), uid))
    free = (number for number in range(len(numbers) + 1) if number not in numbers)
    return _number(path, next(ours, next(free)))


def _list_numbers(name: str) -> list[str]:
    """What follows `name` and a dot, in the names that are there; the name alone is the empty text."""
    pattern = re.compile(rf"{name}(?:\.([1-9][0-9]{{0,9}}))?")
    try:
        found = map(pattern.fullmatch, os.listdir(_SHARED_MEMORY))
    except OSError:
        return []  # no such tmpfs: making the folder will say so
    return [match[1] or "" for match in found if match]


def _number(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}") if number else path


def _is_folder_of(path: Path, uid: int) -> bool:
    try:
        info = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(info.st_mode) and info.st_uid == uid

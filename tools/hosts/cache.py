"""What is slow to make for a test host is kept between runs, outside the checkout, under a name that tells its inputs.

```
$XDG_CACHE_HOME/vmfork-hosts/       0700
    NAME-DIGEST/                    made whole, then renamed to this name; not written to afterwards
    NAME-DIGEST.lock                flock: shared by who uses it, exclusive by who makes or removes it
    NAME-DIGEST.staging/            what a maker has so far; it belongs to who holds the lock
```
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# What is kept this long is made anew, so that tests meet the distribution's packages of the week.
MAX_AGE_S = 7 * 24 * 3600.0
# What nobody asks for that long goes: its inputs have changed, and another is kept by now. Each takes up to 1 GB.
MAX_IDLE_S = 2 * 24 * 3600.0


def find_folder() -> Path:
    """The folder of the cache; it exists and is its user's alone."""
    parent = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = parent / "vmfork-hosts"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


@contextmanager
def open_kept(name: str, inputs: object, make: Callable[[Path], None]) -> Iterator[Path]:
    """In the block the folder holds what `make` made of `inputs`, now or within the last week; nobody removes it.

    `make` fills an empty folder. When it fails, its error is raised and nothing is kept. `inputs` is JSON.
    """
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:12]
    folder = find_folder() / f"{name}-{digest}"
    with Path(f"{folder}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        os.utime(lock.fileno())  # when it was asked for last
        while not _is_fresh(folder):
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_fresh(folder):
                _make(folder, make)
            # The change of a lock is not one step: another may have removed the folder in between.
            fcntl.flock(lock, fcntl.LOCK_SH)
        yield folder


def sweep() -> None:
    """What nobody uses is gone when it is too old, or was not asked for lately; so is what killed makers left.

    Locks stay: removing one would make two of it.
    """
    for path in find_folder().glob("*.lock"):
        folder = path.with_suffix("")
        with path.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            _remove(_staging(folder))
            if _age_s(path) > MAX_IDLE_S or not _is_fresh(folder):
                _remove(folder)


def _make(folder: Path, make: Callable[[Path], None]) -> None:
    staging = _staging(folder)
    for old in (staging, folder):
        _remove(old)
    try:
        staging.mkdir()
        make(staging)
        staging.rename(folder)
    finally:
        _remove(staging)


def _is_fresh(folder: Path) -> bool:
    return folder.exists() and _age_s(folder) < MAX_AGE_S


def _age_s(path: Path) -> float:
    return time.time() - path.stat().st_mtime


def _staging(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.staging")


def _remove(folder: Path) -> None:
    """The folder is gone. A file system mounted in it, left by a chroot that was killed, is not emptied."""
    if not folder.exists():
        return
    # Packages bring folders without write permission, which an ordinary user cannot empty.
    subprocess.run(["find", folder, "-xdev", "-type", "d", "!", "-perm", "-u=wx", "-exec", "chmod", "u+rwx", "{}", "+"],
                   check=False)  # fmt: skip
    subprocess.run(["rm", "-rf", "--one-file-system", "--", folder], check=True)

"""The files of the host that a recipe may read: those in and below one folder."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from vmfork.errors import ConfigError
from vmfork.host.packing import Packing, base_name, check_source
from vmfork.recipe.ignore import Ignore

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Context:
    """The folder of a recipe, and what its copies leave out there."""

    folder: Path
    ignore: Ignore

    @classmethod
    def of(cls, folder: Path) -> Context:
        """Raises `ConfigError` when the ignore file cannot be read, or says what it cannot."""
        return cls(folder, Ignore.read(folder))

    @classmethod
    def empty(cls) -> Context:
        """For steps that read nothing."""
        return cls(Path(), Ignore(()))

    def find(self, name: str, *, field: str) -> Path:
        """The file or folder of that name. Raises `ConfigError` when there is none, or it is not in the folder."""
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            reason = f"{name!r} leads out of the recipe's folder"
            raise ConfigError(field, name, reason, hint=f"give a path from {self.folder} on, or move the recipe up")
        found = self.folder / path
        if not os.path.lexists(found):
            raise ConfigError(field, name, f"there is no {name!r} in {self.folder}", hint="look at the spelling")
        if not Path(os.path.realpath(found)).is_relative_to(os.path.realpath(self.folder)):
            raise ConfigError(field, name, f"{name!r} is a link that leads out of the recipe's folder")
        return found

    def read_file(self, name: str, *, field: str) -> bytes:
        """What the file of that name holds. Raises `ConfigError` when it is none, or cannot be read."""
        found = self.find(name, field=field)
        if not found.is_file():
            raise ConfigError(field, name, f"{name!r} is no file", hint="name each file by itself")
        try:
            return found.read_bytes()
        except OSError as error:
            raise ConfigError(field, name, f"cannot read {found}: {error.strerror}") from error

    def pack(self, name: str, *, field: str) -> tuple[Packing, int]:
        """What is at `name` as the bytes of a tree, without what is left out, and how many if it is a file."""
        path, size = self._find_source(name, field=field)
        return Packing(str(path), leaves_out=lambda inside, is_folder: self._leaves_out(path, inside, is_folder)), size

    def _find_source(self, name: str, *, field: str) -> tuple[Path, int]:
        """The file or folder of that name, and the size of a file. Raises `ConfigError` for anything else."""
        path = self.find(name, field=field)
        try:
            return path, check_source(str(path))
        except ConfigError as error:
            raise ConfigError(field, name, error.reason, hint=error.hint) from error

    def _leaves_out(self, root: Path, inside: str, is_folder: bool) -> bool:
        return self.ignore.leaves_out(str((root / inside).relative_to(self.folder)), is_folder)

    def digest(self, name: str, *, field: str) -> str:
        """SHA-256 over names, kinds, modes and contents of what is at `name`, without what is left out.

        Times and owners do not count: a fresh checkout is the same. Takes about a second for a GiB.
        """
        path, _ = self._find_source(name, field=field)
        total = hashlib.sha256()
        for line in self._describe(path, path, ""):
            total.update(line)
        return total.hexdigest()

    def _describe(self, root: Path, path: Path, inside: str) -> Iterator[bytes]:
        try:
            info = path.stat() if path == root else path.lstat()
            if stat.S_ISREG(info.st_mode):
                yield _line("file", inside or base_name(str(root)), info, hash_content(path))
            elif stat.S_ISLNK(info.st_mode):
                yield _line("link", inside, info, os.readlink(path))
            elif stat.S_ISDIR(info.st_mode):
                yield _line("dir", inside, info, "")
                for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
                    below = os.path.join(inside, entry.name)
                    if not self._leaves_out(root, below, entry.is_dir(follow_symlinks=False)):
                        yield from self._describe(root, path / entry.name, below)
        except FileNotFoundError:
            return  # gone meanwhile; a copy leaves it out as well
        except OSError as error:
            raise ConfigError("copy", str(path), f"cannot read {path}: {error.strerror}") from error


def hash_content(path: Path) -> str:
    """The SHA-256 of the file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _line(kind: str, inside: str, info: os.stat_result, content: str) -> bytes:
    mode = 0 if kind == "link" else stat.S_IMODE(info.st_mode)
    return json.dumps([kind, inside, mode, content]).encode() + b"\n"

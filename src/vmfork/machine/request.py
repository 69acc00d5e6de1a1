"""What is asked for in one fork, as a value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from vmfork.errors import ConfigError
from vmfork.wire.command import check_env
from vmfork.wire.given import check_file, check_path

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmfork.wire.given import GivenFile, PlacedFile


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkRequest:
    """What one machine gets beyond its template. None of it enters a template.

    `env` is the environment of every program in it. `files` (absolute path: content) are written into it before its
    hooks run: bytes, or text as UTF-8, with mode 0600; a path-like object is a file of the host, whose mode it keeps.
    It is grown to `cpus` CPUs and `memory_mib` MiB; `None` leaves it as it is. Raises `ConfigError` for an invalid
    variable, path or size.
    """

    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    files: Mapping[str, GivenFile] = field(default_factory=dict, repr=False)
    cpus: int | None = None
    memory_mib: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "env", check_env(self.env))
        object.__setattr__(self, "files", _check_files(self.files))
        for name in ("cpus", "memory_mib"):
            size = getattr(self, name)
            if size is not None and (not isinstance(size, int) or isinstance(size, bool)):
                raise ConfigError(name, size, f"{size!r} is not a whole number", hint=f"give {name} as a number")

    @property
    def placed(self) -> Mapping[str, PlacedFile]:
        """The files, as they will be."""
        return cast("Mapping[str, PlacedFile]", self.files)

    @property
    def grows(self) -> bool:
        """Whether it asks for a size."""
        return self.cpus is not None or self.memory_mib is not None


def _check_files(files: Mapping[str, GivenFile]) -> dict[str, PlacedFile]:
    """`files` as they will be. Raises `ConfigError` when a path cannot be a file's, or a file of the host be read."""
    ready: dict[str, PlacedFile] = {}
    for path, content in files.items():
        text = check_path(path, field="files")
        if text.endswith("/"):
            raise ConfigError("files", path, f"{text!r} is the path of a folder")
        ready[text] = check_file(content, field=f"files: {text}")
    return ready

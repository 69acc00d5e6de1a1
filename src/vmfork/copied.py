"""What a copy of files brought over."""

from __future__ import annotations

from dataclasses import dataclass

# The names of more are not kept: how many there are is the guest's to choose.
_MOST_SKIPPED = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """What arrived, each under its name and whole.

    `links` are symbolic and hard ones, `size_bytes` is the content without holes, `last` the name that arrived last,
    from the folder that was copied on. `skipped` are names that cannot be copied, at most 1,000: devices, pipes,
    sockets, and what is mounted in the guest.
    """

    files: int = 0
    folders: int = 0
    links: int = 0
    size_bytes: int = 0
    last: str = ""
    skipped: tuple[str, ...] = ()

    def __str__(self) -> str:
        counts = ((self.files, "file"), (self.folders, "folder"), (self.links, "link"))
        told = [f"{count} {noun}{'s' if count != 1 else ''}" for count, noun in counts if count]
        last = f", the last of them {self.last!r}" if self.last else ""
        return f"{', '.join(told) or 'nothing'} with {self.size_bytes} bytes arrived{last}"


class Tally:
    """Counts what arrives."""

    def __init__(self) -> None:
        self._counts = {"file": 0, "dir": 0, "link": 0, "hard": 0}
        self._size_bytes = 0
        self._last = ""
        self._skipped: list[str] = []

    def add(self, kind: str, path: str, size_bytes: int = 0) -> None:
        """A file, `dir`, `link` or `hard` link is in its place."""
        self._counts[kind] += 1
        self._size_bytes += size_bytes
        self._last = path

    def skip(self, path: str) -> None:
        """It cannot be copied."""
        if len(self._skipped) < _MOST_SKIPPED:
            self._skipped.append(path)

    @property
    def entries(self) -> int:
        """How many names arrived."""
        return sum(self._counts.values())

    @property
    def copied(self) -> Copied:
        """What arrived so far."""
        return Copied(
            files=self._counts["file"],
            folders=self._counts["dir"],
            links=self._counts["link"] + self._counts["hard"],
            size_bytes=self._size_bytes,
            last=self._last,
            skipped=tuple(self._skipped),
        )

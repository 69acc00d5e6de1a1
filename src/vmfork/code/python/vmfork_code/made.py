"""Which files a call has made or changed below a folder."""

from __future__ import annotations

import os

# Of so many files a call is told; it may have made any number.
_MOST = 1_000
_MOST_SEEN = 100_000

Seen = dict[str, tuple[int, int, int]]


def look(folder: str) -> Seen:
    """Regular files below it by their paths from there, each with what changes when it is written. Empty for ''."""
    seen: Seen = {}
    folders = [folder] if folder else []
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif entry.is_file(follow_symlinks=False) and len(seen) < _MOST_SEEN:
                        found = entry.stat(follow_symlinks=False)
                        name = os.path.relpath(entry.path, folder)
                        seen[name] = found.st_mtime_ns, found.st_size, found.st_ino
        except OSError:
            continue  # gone meanwhile, or no folder
    return seen


def find_made(folder: str, before: Seen) -> list[str]:
    """Those that are new or others than `before`, sorted; at most a thousand."""
    made = sorted(name for name, found in look(folder).items() if before.get(name) != found)
    return [name for name in made if _is_text(name)][:_MOST]


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True

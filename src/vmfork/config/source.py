"""Where a container image comes from, as it is written: `from = "..."`, and the argument of `image import`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# What is on this host begins with one of these and a colon, and a path; or with one of those and a name that another
# tool knows. Anything else is a name in a registry.
LOCAL_KINDS = ("oci", "docker-archive", "dir")
TOOL_KINDS = ("docker-daemon", "containers-storage")


def absolute_source(source: str, folder: Path) -> str:
    """The same source; a path in it that is relative was meant from `folder` on."""
    kind, colon, place = source.partition(":")
    if not (colon and kind in LOCAL_KINDS and place) or place.startswith("/"):
        return source
    return f"{kind}:{folder.absolute() / place}"

"""Images that lie where only their own tools look: `skopeo` copies them into a layout, and that is imported.

```
docker-daemon:NAME:TAG     of Docker's daemon on this host
containers-storage:NAME    of podman and buildah
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.errors import ArtifactError
from vmfork.host.tool import find_tool, run_tool

if TYPE_CHECKING:
    from pathlib import Path

_PROGRAM = "skopeo"


def find_skopeo(source: str) -> str:
    """Where it is. Raises `HostError` when it is not installed."""
    hint = "install it: apt-get install skopeo; or import a file: docker save, podman save"
    return find_tool(_PROGRAM, f"which fetches {source}", hint=hint)


async def copy_to_layout(source: str, folder: Path) -> str:
    """The image is a layout in `folder`; the source that this is. skopeo is used as its user set it up.

    Raises `HostError` when skopeo is missing, and `ArtifactError`, with the end of what it wrote, when it failed.
    """
    copied, log = f"oci:{folder / 'copied'}:latest", bytearray()
    exit_code = await run_tool([find_skopeo(source), "copy", "--quiet", source, copied], folder=folder, log=log)
    if exit_code:
        said = log.decode(errors="replace").strip()
        why = f"skopeo could not fetch it (exit status {exit_code})" + (f": {said.splitlines()[-1]}" if said else "")
        error = ArtifactError(source, why, hint="see that the tool that has it lists it by that name")
        error.add_note(said)
        raise error
    return copied

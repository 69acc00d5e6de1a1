"""What a fork is asked for by, as it goes to a node, which has other files than we."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from vmfork.machine.disk import read_disk
from vmfork.machine.request import ForkRequest
from vmfork.wire.given import check_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmfork.units import Size
    from vmfork.wire.given import GivenFile, PlacedFile


async def read_fork_options(
    files: Mapping[str, GivenFile] | None, *, disk: Size | None, timeout_s: float | None, **given: Any
) -> dict[str, Any]:
    """What each fork is made with. Raises `ConfigError` for what none can be given, before anybody is asked.

    What a file of this host holds goes along in place of its name: the node has other files.
    """
    disk_mib = read_disk(disk)
    options = {**given, "files": await asyncio.to_thread(_read_files, files or {})}
    ForkRequest(disk_mib=disk_mib, **{name: value for name, value in options.items() if value is not None})
    return {**options, "disk": disk_mib, "timeout_s": timeout_s}


def _read_files(files: Mapping[str, GivenFile]) -> dict[str, PlacedFile]:
    return {path: check_file(content, field=f"files: {path}") for path, content in files.items()}

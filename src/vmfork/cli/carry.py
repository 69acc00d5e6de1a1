"""What a command takes into its machine, and brings out of it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmfork.errors import ConfigError, VMForkError
from vmfork.wire.given import check_file, check_path, name_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmfork.api.vm import VM
    from vmfork.wire.given import PlacedFile

_PLACES = re.compile(r"(.+):(/[^:]*)(?::([0-7]{1,4}))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Baggage:
    """What goes into a fork: `files` before its hooks run, `folders` of the host when it is ready. By guest's path.

    A folder has a mode where it is to have another one there.
    """

    files: dict[str, PlacedFile]
    folders: dict[str, tuple[Path, int | None]]

    async def put_folders(self, vm: VM) -> None:
        """They are in the guest."""
        for guest, (folder, mode) in self.folders.items():
            await vm.put(folder, guest, parents=True)
            if mode is not None:
                await vm.chmod(guest, mode)


@dataclass(frozen=True, slots=True)
class Output:
    """What is brought out, and where to. `failure` says why it was not."""

    guest: str
    host: str
    failure: VMForkError | None = None


def read_baggage(texts: Sequence[str]) -> Baggage:
    """Each `HOST:GUEST[:MODE]` of `texts`, a file or a folder."""
    baggage = Baggage({}, {})
    for text in texts:
        host, guest, mode = _split(text)
        path = Path(host)
        if path.is_dir():
            baggage.folders[check_path(guest, field="file")] = path, mode
        else:
            file = check_file(path, field="file")
            baggage.files[guest] = file if mode is None else file._replace(mode=mode)
    return baggage


def _split(text: str) -> tuple[str, str, int | None]:
    """The places and the mode. A guest's path begins with a slash, and has no colon."""
    found = _PLACES.fullmatch(text)
    if found is None:
        hint = "the guest's path is absolute, a mode octal: ./a:/tmp/a, or ./a:/tmp/a:755"
        raise ConfigError("file", text, f"{text!r} is not HOST:GUEST[:MODE]", hint=hint)
    host, guest, mode = found.groups()
    return host, guest, None if mode is None else int(mode, 8)


def read_output(text: str) -> Output:
    """`GUEST[:HOST]`; without a place here, its own name in the working folder."""
    guest, _, host = text.partition(":")
    if not guest.startswith("/"):
        hint = "the guest's path is absolute: /tmp/a, or /tmp/a:./b"
        raise ConfigError("out", text, f"{text!r} is not GUEST[:HOST]", hint=hint)
    host = host or name_of(guest)
    holder = os.path.dirname(os.path.abspath(host))
    if not os.path.isdir(holder):
        raise ConfigError("out", text, f"there is no folder {holder!r}", hint="make it first")
    return Output(check_path(guest, field="out"), host)


async def fetch_outputs(vm: VM, outputs: Sequence[Output]) -> list[Output]:
    """Each is here, or says why not."""
    return [await _fetch(vm, output) for output in outputs]


async def _fetch(vm: VM, output: Output) -> Output:
    try:
        await vm.get(output.guest, output.host)
    except VMForkError as error:
        return Output(output.guest, output.host, error)
    return output

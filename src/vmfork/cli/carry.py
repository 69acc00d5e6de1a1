"""What a command takes into its machine, and brings out of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmfork.errors import ConfigError, VMForkError
from vmfork.wire.given import check_file, check_path, name_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmfork.api.vm import VM
    from vmfork.wire.given import PlacedFile


@dataclass(frozen=True, slots=True)
class Baggage:
    """What goes into a fork: `files` before its hooks run, `folders` of the host when it is ready. By guest's path."""

    files: dict[str, PlacedFile]
    folders: dict[str, Path]

    async def put_folders(self, vm: VM) -> None:
        """They are in the guest."""
        for guest, folder in self.folders.items():
            await vm.put(folder, guest, parents=True)


@dataclass(frozen=True, slots=True)
class Output:
    """What is brought out, and where to. `failure` says why it was not."""

    guest: str
    host: str
    failure: VMForkError | None = None


def read_baggage(texts: Sequence[str]) -> Baggage:
    """Each `HOST:GUEST` of `texts`, a file or a folder."""
    baggage = Baggage({}, {})
    for text in texts:
        host, colon, guest = text.rpartition(":")
        if not colon or not host or not guest.startswith("/"):
            hint = "the guest's path is absolute: ./a:/tmp/a"
            raise ConfigError("file", text, f"{text!r} is not HOST:GUEST", hint=hint)
        path = Path(host)
        if path.is_dir():
            baggage.folders[check_path(guest, field="file")] = path
        else:
            baggage.files[guest] = check_file(path, field="file")
    return baggage


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

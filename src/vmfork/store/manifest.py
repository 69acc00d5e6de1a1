"""What a template is: what was booted and frozen, written once, compared on every opening."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping  # noqa: TC003 - a record's types are looked up when it is read
from dataclasses import dataclass, field
from typing import Any

from vmfork.errors import TemplateCorrupt, TemplateStale
from vmfork.records import OtherVersion, build_record, list_fields, parse_record, reads_also

# 3 is of templates whose machines have no disk that they write to, and so are those written still.
FORMAT, WITHOUT_DISK = 4, 3
FILE_NAME = "manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class DoneStep:
    """A step that was done on the way to the template, and how long that took.

    `layer` names the machine as it was then, where that was kept. `reused`: a former build had done it.
    """

    step: str
    took_s: float
    layer: str = ""
    reused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The record of one frozen template. It keeps what was booted, never what a caller says today.

    `traits` is the allow-list that decides whether a template fits a request, in the order it is compared: emulator
    version, machine type, accelerator, CPU model, digests of kernel and initramfs, kernel arguments, who reseeds.
    `fingerprint` is their digest. Size is not a trait: `cpus` and `memory_mib` are compared by whoever fits a machine
    to a request, and so are `max_cpus` and `max_memory_mib`, to which a fork can grow: the emulator is started for
    them, and would not notice if it were started for others. `hooks` (paths in the guest) and `watchers` are what each
    fork has to do before it is handed out; `secrets_found` are those of `secret_paths` and `secret_env` that were
    present and allowed. Of `memory_mib`, `added_mib` was plugged in piece by piece before the freeze, and is the end of
    the RAM file. `parent`: the template of the running VM that it was frozen from; `ancestors`: `NAME/GENERATION` of
    all that it descends from so, the first first and the parent last, whether they still exist or not. `live`: that VM
    ran on, and a client spoke to its agent, so that each fork's must be greeted anew; `unset`: what its forks have from
    it and lose. `nic`: they have a network card. `disk_mib` is the size of the disk that they write to, and
    `disk_sha256` names what is on it when they begin (image/disks.py). `recipe` names what was done to it, where that
    were `steps`; `base_image` is the image that `image` was derived from for them, and `layers` are the machines that
    were kept on the way, or gone on from. `came_from` is the file or the registry that it was loaded from; one that
    came from elsewhere is not held to an image of this host.
    Sizes in bytes, times in seconds, `created_at` in UTC (ISO 8601).
    """

    name: str
    generation: str
    created_at: str
    image: str
    cpus: int
    memory_mib: int
    traits: Mapping[str, str]
    agent_protocol: int
    agent_version: str
    vmgenid: bool
    memory_bytes: int
    memory_allocated_bytes: int
    memory_sha256: str
    state_bytes: int
    state_sha256: str
    host_boot_id: str
    host_kernel: str
    qemu_path: str
    qemu_stamp: str
    parent: str = ""
    ancestors: tuple[str, ...] = ()
    warm_up: tuple[str, ...] = ()
    ready: str = ""
    hooks: tuple[str, ...] = ()
    watchers: tuple[str, ...] = ()
    secret_paths: tuple[str, ...] = ()
    secret_env: tuple[str, ...] = ()
    secrets_found: tuple[str, ...] = ()
    max_cpus: int = 0
    max_memory_mib: int = 0
    added_mib: tuple[int, ...] = ()
    nic: bool = False
    disk_mib: int = 0
    disk_sha256: str = ""
    live: bool = False
    agent_capabilities: tuple[str, ...] = ()
    unset: Mapping[str, str] = field(default_factory=dict)
    recipe: str = ""
    base_image: str = ""
    came_from: str = ""
    steps: tuple[DoneStep, ...] = ()
    layers: tuple[str, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    format: int = field(default=FORMAT, metadata=reads_also(WITHOUT_DISK))

    @property
    def fingerprint(self) -> str:
        """Hex digest of the traits: two templates with the same one accept the same requests."""
        return fingerprint_of(self.traits)

    def to_json(self) -> bytes:
        """The manifest as a file, with a checksum of itself so that an edit is noticed."""
        body = list_fields(self)
        return (json.dumps({**body, "checksum": _checksum(body)}, indent=2, default=list_fields) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes, *, name: str) -> Manifest:
        """The manifest in `data`. Raises `TemplateStale` for another format, `TemplateCorrupt` for no manifest."""
        try:
            return build_record(cls, _check_sum(parse_record(cls, data)))
        except OtherVersion as error:
            raise TemplateStale(name, error.field, error.have, error.want) from error
        except (ValueError, RecursionError) as error:
            raise TemplateCorrupt(name, FILE_NAME, str(error)) from error

    def check_traits(self, wanted: Mapping[str, str]) -> None:
        """Raises `TemplateStale`, naming the first trait in `wanted` that differs."""
        differing = self.find_difference(wanted)
        if differing is not None:
            raise TemplateStale(self.name, differing, self.traits.get(differing), wanted[differing])

    def find_difference(self, wanted: Mapping[str, str]) -> str | None:
        """The first trait that differs, in the template's order, or `None`."""
        return next(iter(list_differing(self.traits, wanted)), None)


# What machines are of which an older vmfork recorded no such trait.
_BEFORE = {"nic": "off", "disk_mib": "0"}


def list_differing(have: Mapping[str, str], wanted: Mapping[str, str]) -> tuple[str, ...]:
    """The traits in `wanted` that are not as in `have`, in their order."""
    known = {**_BEFORE, **have}
    return tuple(trait for trait, value in wanted.items() if known.get(trait) != value)


def fingerprint_of(traits: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(traits), sort_keys=True).encode()).hexdigest()


def _check_sum(body: dict[str, Any]) -> dict[str, Any]:
    """`body` without its checksum, which is of all else that was written, unknown fields too."""
    if body.pop("checksum", None) != _checksum(body):
        raise ValueError("its checksum does not match its content: it was edited or damaged")
    return body


def _checksum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, default=list_fields).encode()).hexdigest()

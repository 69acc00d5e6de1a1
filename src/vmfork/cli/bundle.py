"""What a bug report needs to know of one machine and of this host, without guest memory and without secrets.

```
README.txt         what this is
versions.json      vmfork, Python, kernel, QEMU
doctor.json        as `vmfork doctor --json`; nothing was booted for it
settings.json      as `vmfork config --json`; of kernel arguments, only that there are some
store.json         templates, images and machines by name
templates/         each template: size, emulator, traits, times
machine/           what is left of the machine: record.json, ticket.json, template.json, process.json, files.json,
                   and the ends of console.log and qemu.log
missing.json       what could not be had, and why
```
What is taken is listed here, field by field where a record has others. So nothing is in it that nobody thought of:
no handle (whoever has its token has the machine), no environment, no file that was given to a guest, no recipe, none of
its warm-up commands, secret paths or variables. The guest wrote its console itself: that is as it is, but for the
kernel arguments.
"""

from __future__ import annotations

import io
import json
import os
import platform
import tarfile
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import vmfork
from vmfork.cli.doctor import examine
from vmfork.errors import VMForkError
from vmfork.host.folders import is_ours, open_file
from vmfork.host.memory import read_private, read_resident
from vmfork.host.process import read_argv, read_stat
from vmfork.hypervisor.qemu import CONSOLE, LOG
from vmfork.image import ImageStore
from vmfork.machine.folder import (
    LOCK,
    find_record,
    find_strangers,
    find_ticket,
    find_waste,
    folder_of,
    list_records,
)
from vmfork.machine.plan import KERNEL_ARGS
from vmfork.progress import ignore_progress
from vmfork.store import TemplateStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vmfork.config import Places
    from vmfork.config.loader import Settings
    from vmfork.machine.folder import VMRecord

TAIL_BYTES = 256 * 1024
_KERNEL_ARGS = "vm.kernel_args"
_HIDDEN = "[hidden]"
_SHORTEST = 4
_TEMPLATE_FIELDS = (
    *("name", "generation", "created_at", "image", "cpus", "memory_mib", "agent_protocol", "agent_version", "vmgenid"),
    *("memory_bytes", "memory_allocated_bytes", "state_bytes", "host_boot_id", "host_kernel", "qemu_path"),
    *("qemu_stamp", "parent", "max_cpus", "max_memory_mib", "timings", "format"),
)
_IMAGE_FIELDS = (
    *("name", "digest", "kernel_release", "arch", "suite", "bare", "created_at", "kernel_bytes", "initramfs_bytes"),
)
_RECORD_FIELDS = ("id", "template", "image", "generation", "hostname", "machine_id", "created_at", "pid", "owner_pid")
_README = """\
vmfork debug-bundle of machine {vm_id}, {when}.

It holds no guest memory, no environment, no given files, no handles and no recipes. machine/console.log is what the
guest itself printed: look through it before you pass it on.
"""


@dataclass
class Bundle:
    """Members by name, and what is missing of them with the reason. Words in `hidden` are in none of them."""

    members: dict[str, bytes] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)

    def add(self, name: str, value: object) -> None:
        """The member `name` is `value`, as JSON unless it is bytes."""
        data = value if isinstance(value, bytes) else json.dumps(value, indent=1, default=str).encode() + b"\n"
        self.members[name] = data

    @contextmanager
    def tried(self, name: str) -> Iterator[None]:
        """An error in the block means that `name` is missing. Its message is left out, since it may quote anything."""
        try:
            yield
        except (VMForkError, OSError, ValueError) as error:
            told = error.code if isinstance(error, VMForkError) else getattr(error, "strerror", None)
            self.missing[name] = f"{type(error).__name__}: {told or 'it cannot be read'}"

    def hide(self, arguments: str) -> None:
        """The words of kernel `arguments` that are not ours are hidden wherever they are."""
        self.hidden |= {word for word in arguments.split() if len(word) >= _SHORTEST} - {*KERNEL_ARGS.split()}

    def write(self) -> bytes:
        """All of it as a tar.gz."""
        self.add("missing.json", self.missing)
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz") as tar:
            for name, data in self.members.items():
                clean = self._clean(data)
                info = tarfile.TarInfo(name)
                info.size, info.mode, info.mtime = len(clean), 0o600, int(time.time())
                tar.addfile(info, io.BytesIO(clean))
        return out.getvalue()

    def _clean(self, data: bytes) -> bytes:
        for word in sorted(self.hidden, key=len, reverse=True):
            data = data.replace(word.encode(), _HIDDEN.encode())
        return data


async def collect(vm_id: str, settings: Settings | None, places: Places) -> Bundle:
    """The bundle of machine `vm_id`, of which there may be nothing left. `settings` are `None` if they are invalid."""
    bundle = Bundle()
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    bundle.add("README.txt", _README.format(vm_id=vm_id, when=when).encode())
    # First: what else looks at the host may sweep what a dead owner left.
    with bundle.tried("machine"):
        _add_machine(bundle, folder_of(places.vms, vm_id), places)
    bundle.add("versions.json", _list_versions())
    if settings is None:
        bundle.missing["settings.json"] = bundle.missing["doctor.json"] = "the configuration is invalid: vmfork config"
    else:
        bundle.hide(settings.vm.kernel_args)
        bundle.add("settings.json", _list_settings(settings, places))
        with bundle.tried("doctor.json"):
            checks = await examine(settings.vm, places, ignore_progress, may_boot=False)
            bundle.add("doctor.json", [asdict(check) for check in checks])
    _add_store(bundle, places)
    return bundle


def _add_machine(bundle: Bundle, folder: Path, places: Places) -> None:
    if not is_ours(folder, marker=LOCK):
        there = os.path.lexists(folder)
        bundle.missing["machine"] = "its folder is not one of ours" if there else "it has ended, and its folder is gone"
        return
    with bundle.tried("machine/files.json"):
        bundle.add("machine/files.json", [_describe_file(path) for path in sorted(folder.iterdir())])
    for name in (CONSOLE, LOG):
        if not os.path.lexists(folder / name):
            bundle.missing[f"machine/{name}"] = "nothing was written to it"
            continue
        with bundle.tried(f"machine/{name}"):
            bundle.add(f"machine/{name}", _read_tail(folder / name))
    record = None
    with bundle.tried("machine/ticket.json"):
        if (ticket := find_ticket(folder)) is not None:
            bundle.add("machine/ticket.json", asdict(ticket))
        else:
            bundle.missing["machine/ticket.json"] = "it is missing or damaged"
    with bundle.tried("machine/record.json"):
        if (record := find_record(folder)) is None:
            bundle.missing["machine/record.json"] = "vm.json is missing or damaged"
    if record is None:
        return
    bundle.add("machine/record.json", _describe_record(record))
    with bundle.tried("machine/process.json"):
        bundle.add("machine/process.json", _describe_process(record, bundle))
    if record.template:
        with bundle.tried("machine/template.json"):
            bundle.add("machine/template.json", _describe_template(record.template, bundle, places))


def _describe_file(path: Path) -> dict[str, Any]:
    info = path.lstat()
    return {"name": path.name, "mode": oct(info.st_mode), "uid": info.st_uid, "size": info.st_size, "at": info.st_mtime}


def _read_tail(path: Path) -> bytes:
    """The end of a regular file; a FIFO in its place is an error, and keeps nobody."""
    with os.fdopen(open_file(path), "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
        return file.read(TAIL_BYTES)


def _describe_record(record: VMRecord) -> dict[str, Any]:
    origin, isolation = record.facts.origin, record.facts.isolation
    return {
        **{key: getattr(record, key) for key in _RECORD_FIELDS},
        "hardware": asdict(record.hardware),
        "isolation": isolation and isolation.level,
        "origin": origin and {"kind": origin.kind, "reason": origin.reason},
    }


def _describe_process(record: VMRecord, bundle: Bundle) -> dict[str, Any]:
    if not record.process.is_alive():
        return {"alive": False}
    pid = record.pid
    argv = [*read_argv(pid)]
    if "-append" in argv:
        at = argv.index("-append") + 1
        bundle.hide(argv[at])
        argv[at] = _HIDDEN
    state = read_stat(pid)[:1]
    return {
        "alive": True,
        "argv": argv,
        "state": state[0].decode() if state else "",
        "private_bytes": read_private(pid),
        "resident_bytes": read_resident(pid),
        "owner_alive": bool(record.owner_pid and read_stat(record.owner_pid)),
    }


def _describe_template(name: str, bundle: Bundle, places: Places) -> dict[str, Any]:
    manifest = TemplateStore(places.templates).read_manifest(name)
    traits = dict(manifest.traits)
    bundle.hide(traits.pop("kernel_args", ""))
    return {key: getattr(manifest, key) for key in _TEMPLATE_FIELDS} | {"traits": traits}


def _list_versions() -> dict[str, str]:
    release = {}
    with suppress(OSError):
        release = platform.freedesktop_os_release()
    return {
        "vmfork": vmfork.__version__,
        "python": platform.python_version(),
        "system": release.get("PRETTY_NAME", ""),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "user": "root" if os.geteuid() == 0 else "an ordinary user",
    }


def _list_settings(settings: Settings, places: Places) -> dict[str, Any]:
    values = settings.values()
    if values[_KERNEL_ARGS]:
        values[_KERNEL_ARGS] = _HIDDEN
    told = {name: {"value": value, "origin": settings.origins[name]} for name, value in values.items()}
    return {"file": settings.file, "settings": told, "home": places.home, "runtime": places.runtime}


def _add_store(bundle: Bundle, places: Places) -> None:
    store: dict[str, Any] = {}
    with bundle.tried("store.json"):
        store["machines"] = [
            {"id": each.id, "template": each.template, "owned": bool(each.owner_pid), "created_at": each.created_at}
            for each in list_records(places.vms)
        ]
        store["images"] = [
            {key: getattr(image, key) for key in _IMAGE_FIELDS} for image in ImageStore(places.images).list_images()
        ]
        store["waste"] = len(find_waste(places.vms))
        store["strangers"] = len(find_strangers(places.vms))
        store["templates"] = names = TemplateStore(places.templates).list_names()
        for name in names:
            with bundle.tried(f"template {name}"):
                bundle.add(f"templates/{name}.json", _describe_template(name, bundle, places))
    bundle.add("store.json", store)

"""An image from elsewhere becomes an image of ours: found, read, checked, applied, and put into the store."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vmfork.config import check_import_name
from vmfork.config.source import LOCAL_KINDS, TOOL_KINDS
from vmfork.config.values import check_root
from vmfork.container.additions import VERSION, Additions, read_kernel
from vmfork.container.archive import open_archive
from vmfork.container.boot import Boot, write_boot
from vmfork.container.folder import copy_folder, digest_folder
from vmfork.container.layer import Applying, Contents
from vmfork.container.limits import Budget, ImportLimits, check_packed
from vmfork.container.origin import ARCH, INDEXES, MANIFESTS, SYSTEM, Origin, choose_document, find_in_layout
from vmfork.container.root import PathError, Root
from vmfork.container.running import Running, read_configuration
from vmfork.container.skopeo import copy_to_layout, find_skopeo
from vmfork.errors import ArtifactError, ConfigError, HostError
from vmfork.host.folders import NO_FILE
from vmfork.host.thread import check_wanted, in_thread
from vmfork.image import disk, lz4, recipe
from vmfork.image.build import commit, explained, lock_subject
from vmfork.image.record import RECORD_NAME, encode_record
from vmfork.oci.descriptor import Descriptor, digest_of
from vmfork.oci.door import check_extra, open_repository
from vmfork.oci.layout import Layout
from vmfork.oci.reference import Reference
from vmfork.progress import Progress, ProgressListener, ignore_progress

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from vmfork.config.values import RootChoice
    from vmfork.container.running import Configuration
    from vmfork.host.compressed import Source
    from vmfork.image import DiskStore, Image
    from vmfork.image.store import ImageStore
    from vmfork.oci.registry import Repository

_LANES = 4
_PIECE = 1 << 20
# Shares of the whole: fetching and applying, then packing.
_APPLIED_SHARE = 0.7


@dataclass(frozen=True, slots=True)
class Import:
    """What is imported, and how. `source` is told; `kernel` is an image whose kernel it takes, its disk in `disks`."""

    origin: Origin
    source: str
    kernel: Image
    disks: DiskStore
    limits: ImportLimits
    plain_http: bool
    root: RootChoice


def check_import(source: str, name: str, root: RootChoice = "auto") -> Origin:
    """Where that source is. Raises what `import_image` raises of what can be seen before anything is read."""
    check_import_name(name)
    check_lies(root)
    origin = Origin.parse(source)
    if origin.kind in LOCAL_KINDS and not os.path.exists(origin.place):
        raise ConfigError("source", source, f"nothing is at {origin.place}", hint="see where it is, or make it first")
    if origin.kind == "dir" and not os.path.isdir(origin.place):
        hint = "give docker-archive:FILE for what docker save wrote, oci:FILE for a tar of a layout"
        raise ConfigError("source", source, f"{origin.place} is no folder", hint=hint)
    if origin.kind == "docker-archive" and os.path.isdir(origin.place):
        hint = "give oci:FOLDER for a layout, dir:FOLDER for a root file system"
        raise ConfigError("source", source, f"{origin.place} is a folder", hint=hint)
    return origin


def check_lies(root: RootChoice) -> None:
    """Raises `ConfigError` for what is nowhere, `HostError` where this host lacks what makes a disk."""
    if check_root(root) == "disk":
        disk.find_sqfstar()


def check_reader(origin: Origin) -> None:
    """Raises `HostError` where this host lacks what fetches images from there."""
    if origin.kind in TOOL_KINDS:
        find_skopeo(f"{origin.kind}:{origin.place}")
    elif origin.kind not in LOCAL_KINDS:
        check_extra()


async def import_image(
    source: str,
    name: str,
    *,
    kernel: Image,
    store: ImageStore,
    limits: ImportLimits | None = None,
    plain_http: bool = False,
    root: RootChoice = "auto",
    told_as: str = "",
    progress: ProgressListener = ignore_progress,
) -> Image:
    """`name` leads to an image of what is at `source` (see `origin.py`), with the kernel of the image `kernel`.

    `root` says where its guests have its files, as `ImageConfig` has it. `told_as` is what its record says of where it
    came from, where that is not `source`.
    Raises `ConfigError` for a source that is none, `ArtifactError` for an image that is damaged, hostile or for another
    machine, and `HostError`. After any of them, and on cancel, everything is as it was before.
    """
    origin = check_import(source, name, root)
    work = Import(origin, told_as or source, kernel, store.disks, limits or ImportLimits(), plain_http, root)
    lz4.check_library()
    loop = asyncio.get_running_loop()

    def report(step: str, fraction: float) -> None:
        loop.call_soon_threadsafe(progress, Progress(task="image", step=step, fraction=fraction))

    with explained(store.folder):
        store.make()
        await asyncio.to_thread(store.sweep)
        with store.staging() as folder:
            built = folder / "image"
            built.mkdir()
            if work.origin.kind in TOOL_KINDS:
                report("fetching by skopeo", 0.0)
                work = replace(work, origin=Origin.parse(await copy_to_layout(source, folder)))
            with ExitStack() as lines:
                image = await in_thread(
                    lambda stop: _make(work, folder, built, name, stop, report, lines), interrupt=lines.close
                )
            lock, _ = await lock_subject(image.digest, store, ignore_progress)
            with lock:
                await in_thread(lambda _: _commit(store, built, image))
                store.link(name, image.digest)
                found = store.open(name)
    progress(Progress(task="image", step="done", fraction=1.0))
    return found


def _commit(store: ImageStore, built: Path, image: Image) -> None:
    """The image is in the store, and remembers every source of its content."""
    there = store.find_checked(image.digest)
    sources = tuple(sorted({image.source, *(there.sources if there is not None else ())}))
    image = replace(image, sources=sources)
    (built / RECORD_NAME).write_bytes(encode_record(image))
    commit(store, built, image)


def _make(
    work: Import,
    folder: Path,
    built: Path,
    name: str,
    stop: threading.Event,
    report: Callable[[str, float], None],
    lines: ExitStack,
) -> Image:
    """The image in `built`. Lines to registries are in `lines`, which wakes by its end what waits in one."""

    def check(_fraction: float = 0.0) -> None:
        check_wanted(stop)

    report("reading the image", 0.0)
    agent = recipe.find_agent().read_bytes()
    kernel = read_kernel(work.kernel, work.disks, folder / "modules")
    with (folder / "contents").open("w+b") as file:
        root = Root(most_path=work.limits.path_bytes)
        applying = Applying(root, Contents(file), Budget(work.limits), check)
        running, digest = _fill(work, applying, folder, report, check, lines)
        _make_folder(running.cwd, root, applying.layers + 1, work.source)
        additions = Additions(root, applying.contents, applying.layers + 1, source=work.source)
        additions.add_all(agent, kernel, running)
        applying.contents.finish()
        report("packing the image", _APPLIED_SHARE)
        boot = Boot(
            root=root,
            lies=work.root,
            agent=agent,
            contents=file,
            kernel=kernel,
            running=running,
            source=work.source,
            digest=digest,
            recipe=name_recipe(digest, agent, work.kernel, work.root),
        )
        return write_boot(boot, built, name=name, check=check)


def _make_folder(path: str, root: Root, layer: int, source: str) -> None:
    """The image's programs can begin there. Raises `ArtifactError` where no folder can be."""
    names = _names(path)
    if not path.startswith("/") or root.find(names) is not None:
        return
    try:
        root.make_folder(names, layer).mtime = recipe.EPOCH
    except PathError as error:
        raise ArtifactError(source, f"its programs begin in {path!r} (WorkingDir), and {error}") from error


def _names(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".", "..")]


def name_recipe(digest: str, agent: bytes, kernel: Image, root: RootChoice = "auto") -> str:
    """Names what an image is made of: the content at its source, this agent, that kernel, what is added, and where.

    The kernel's modules are named by the kernel and by our tables of them: one that lacks a module is refused.
    """
    inputs = [
        *("import", VERSION, digest, hashlib.sha256(agent).hexdigest(), kernel.kernel_sha256),
        *(hashlib.sha256(recipe.read_guest_module()).hexdigest(), sorted(recipe.MODULES), recipe.BOOT_MODULES),
        *(recipe.RECIPE_VERSION, recipe.SCRATCH_MODULES, recipe.MAY_LACK),
        *(recipe.FOLDERS, recipe.FILES, recipe.DISK_BOOT_MODULES, recipe.DISK_LATE_MODULES),
        *(root, recipe.DISK_FROM_BYTES),
    ]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


def _fill(
    work: Import,
    applying: Applying,
    folder: Path,
    report: Callable[[str, float], None],
    check: Callable[[], None],
    lines: ExitStack,
) -> tuple[Running, str]:
    """The root holds the image; how its programs run, and its digest."""
    origin = work.origin
    if origin.kind == "dir":
        digest = digest_folder(Path(origin.place), check)
        copy_folder(Path(origin.place), applying)
        return Running(), digest
    if origin.kind == "oci":
        with _open_path(origin.place, Layout.open) as layout:
            found = find_in_layout(layout, origin.tag)
            configuration = layout.read(found.manifest.config)
            opens = [(each, lambda each=each: layout.streaming(each)) for each in found.manifest.layers]
            return _apply_all(found.name, configuration, opens, applying, report), found.digest
    if origin.kind == "docker-archive":
        with open_archive(Path(origin.place), origin.tag) as saved:
            unnamed = Descriptor(media_type="", digest="", size_bytes=0)
            layers = [(unnamed, lambda each=each: saved.opened(each)) for each in saved.layers]
            return _apply_all(saved.name, saved.configuration, layers, applying, report), saved.digest
    return _pull(work, applying, folder, report, check, lines)


def identify(origin: Origin, check: Callable[[], None] = lambda: None) -> str:
    """Names what is there now, at a source that is on this host, as an import of it does. Raises what that raises."""
    if origin.kind == "dir":
        return digest_folder(Path(origin.place), check)
    if origin.kind == "docker-archive":
        with open_archive(Path(origin.place), origin.tag) as saved:
            return saved.digest
    with _open_path(origin.place, Layout.open) as layout:
        return find_in_layout(layout, origin.tag).digest


@contextmanager
def _open_path(path: str, opens: Callable[[Path], Layout]) -> Iterator[Layout]:
    try:
        layout = opens(Path(path))
    except OSError as error:
        if error.errno in NO_FILE or isinstance(error, FileNotFoundError):
            raise ConfigError("source", path, f"cannot open {path}: {error.strerror}") from error
        raise
    with layout:
        yield layout


def _apply_all(
    name: str,
    configuration: bytes,
    layers: Sequence[tuple[Descriptor, Callable[[], AbstractContextManager[Source]]]],
    applying: Applying,
    report: Callable[[str, float], None],
) -> Running:
    """The layers are applied, each compared with its digests. Raises `ArtifactError`."""
    said = _check_configuration(name, configuration, len(layers), applying.budget.limits)
    for number, ((descriptor, opens), diff_id) in enumerate(zip(layers, said.diff_ids, strict=True)):
        report(f"applying layer {number + 1} of {len(layers)}", _APPLIED_SHARE * number / len(layers))
        layer = f"{name}: layer {number + 1} ({descriptor.digest or diff_id})"
        with opens() as source:
            packed = _Hashed(source)
            have = applying.apply(packed, layer)
            packed.drain()
        if descriptor.digest and packed.digest != descriptor.digest:
            raise ArtifactError(layer, "its content is not what its digest says")
        if have != diff_id:
            raise ArtifactError(layer, f"it unpacks to {have}, and the configuration says {diff_id}")
    return said.running


def _check_configuration(name: str, configuration: bytes, layers: int, limits: ImportLimits) -> Configuration:
    """What the image says of itself. Raises `ArtifactError` where that is not of an image of so many layers for us."""
    try:
        said = read_configuration(configuration)
    except ValueError as error:
        raise ArtifactError(name, f"its configuration: {error}") from error
    if (said.system, said.arch) != (SYSTEM, ARCH):
        what = f"it is for {said.system or '?'}/{said.arch or '?'}, and guests are {SYSTEM}/{ARCH}"
        raise ArtifactError(name, what, hint=f"give an image for {SYSTEM}/{ARCH}")
    if len(said.diff_ids) != layers:
        raise ArtifactError(name, f"its configuration tells of {len(said.diff_ids)} layers, and it has {layers}")
    if not layers:
        raise ArtifactError(name, "it has no layers, so nothing could run in it", hint="give an image with files")
    if layers > limits.layers:
        raise ArtifactError(name, f"it has more than {limits.layers} layers (limit layers)")
    return said


class _Hashed:
    """What is read of a layer, as it was sent, by its digest."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._hash = hashlib.sha256()

    def read(self, size: int, /) -> bytes:
        data = self._source.read(size)
        self._hash.update(data)
        return data

    def drain(self) -> None:
        while self.read(_PIECE):
            pass

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


def _pull(
    work: Import,
    applying: Applying,
    folder: Path,
    report: Callable[[str, float], None],
    check: Callable[[], None],
    lines: ExitStack,
) -> tuple[Running, str]:
    """The image in a registry: its layers are fetched side by side into files, then applied."""
    reference = Reference.parse(work.origin.place)
    repository = lines.enter_context(open_repository(reference, plain_http=work.plain_http))
    check()  # nobody may have waited any more before it was there
    data = repository.read_manifest(reference.version, (*MANIFESTS, *INDEXES))
    found = choose_document(_Manifests(repository), data, digest_of(data), _type_of(data), work.origin.place)
    configuration = repository.read(found.manifest.config)
    _check_configuration(found.name, configuration, len(found.manifest.layers), work.limits)
    check_packed(sum(each.size_bytes for each in found.manifest.layers), found.name, work.limits)
    _fetch_layers(found.manifest.layers, repository, folder, work.origin.place, report=report, check=check)

    @contextmanager
    def opened(layer: Descriptor) -> Iterator[Source]:
        with (folder / layer.digest.replace(":", "-")).open("rb") as file:
            yield file

    opens = [(each, lambda each=each: opened(each)) for each in found.manifest.layers]
    return _apply_all(found.name, configuration, opens, applying, report), found.digest


def _fetch_layers(
    layers: Sequence[Descriptor],
    repository: Repository,
    folder: Path,
    place: str,
    *,
    report: Callable[[str, float], None],
    check: Callable[[], None],
) -> None:
    """Each is in a file of the folder, by its digest."""
    total = sum(each.size_bytes for each in layers) or 1
    have = dict.fromkeys((each.digest for each in layers), 0)
    if shutil.disk_usage(folder).free < total:
        raise HostError(f"no space for the layers of {place}: {total >> 20} MiB", hint="free some")

    def fetch(layer: Descriptor) -> None:
        def note(size: int) -> None:
            check()
            have[layer.digest] = size
            report("fetching layers", 0.5 * _APPLIED_SHARE * min(1.0, sum(have.values()) / total))

        with (folder / layer.digest.replace(":", "-")).open("w+b") as file:
            repository.download(layer, file, note)

    with ThreadPoolExecutor(_LANES, thread_name_prefix="vmfork-pull") as pool:
        try:
            list(pool.map(fetch, {each.digest: each for each in layers}.values()))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@dataclass(frozen=True, slots=True)
class _Manifests:
    """Manifests of a registry, by their descriptors."""

    repository: object

    def read(self, descriptor: Descriptor) -> bytes:
        data: bytes = self.repository.read_manifest(descriptor.digest, (*MANIFESTS, *INDEXES))  # type: ignore[attr-defined]
        return data


def _type_of(data: bytes) -> str:
    """What the document says that it is; an old one may not say so."""
    try:
        body = json.loads(data)
        return str(body.get("mediaType") or (INDEXES[0] if "manifests" in body else MANIFESTS[0]))
    except (ValueError, AttributeError, RecursionError):
        return MANIFESTS[0]

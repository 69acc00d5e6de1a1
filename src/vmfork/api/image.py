"""What machines boot, by name: built of packages, or imported."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Self

from vmfork.border import guarded
from vmfork.config import DEFAULT_IMAGE, ImageConfig, Instance, find_places
from vmfork.container.dockerfile import build_dockerfile, check_dockerfile
from vmfork.container.importing import check_import, check_reader, import_image
from vmfork.container.limits import ImportLimits
from vmfork.errors import ConfigError, ImageInUse
from vmfork.image import ImageStore
from vmfork.image.build import build_image
from vmfork.machine.prepare import ensure_image
from vmfork.progress import ignore_progress
from vmfork.store import TemplateStore
from vmfork.travel.images.moving import Target, load_image, pull_image, push_image, save_image
from vmfork.wire.given import check_local

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmfork.config import Places
    from vmfork.config.values import RootChoice
    from vmfork.image.record import Image as ImageRecord
    from vmfork.progress import ProgressListener
    from vmfork.travel.saved import Saved
    from vmfork.wire.given import HostPath

# Of all layers of an image that is imported, unpacked.
MOST_UNPACKED = 8 << 30


@guarded
class Image:
    """An image that is whole. A value: it holds nothing open."""

    def __init__(self, record: ImageRecord, places: Places) -> None:
        self._record = record
        self._places = places

    def __repr__(self) -> str:
        return f"<Image {self.name!r}, {self.digest[:12]}>"

    @property
    def name(self) -> str:
        """What it is opened by."""
        return self._record.name

    @property
    def digest(self) -> str:
        """Names its content."""
        return self._record.digest

    @property
    def size_bytes(self) -> int:
        """What its files take on disk."""
        return self._record.size_bytes

    @property
    def source(self) -> str:
        """Where it was imported from; empty where it was built."""
        return self._record.source

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables that an imported image gives its programs. They are in force in its guests."""
        return self._record.environment

    @property
    def working_dir(self) -> str:
        """Where its programs begin, unless they are told otherwise; empty where it says nothing."""
        return self._record.working_dir

    @property
    def user(self) -> str:
        """Whom its programs run as, unless they are told otherwise; empty where it says nothing: root."""
        return self._record.user

    @property
    def argv(self) -> Sequence[str]:
        """What it was made to run: its entrypoint and command. `VM.image_argv` has them in each of its machines."""
        return (*self._record.entrypoint, *self._record.command)

    @classmethod
    async def build(
        cls,
        name: str = DEFAULT_IMAGE,
        config: ImageConfig | None = None,
        *,
        rebuild: bool = False,
        progress: ProgressListener = ignore_progress,
        places: Places | None = None,
    ) -> Self:
        """`name` leads to an image as `config` says: of Debian's packages, or with `source` of a container image.

        It was made unless it was there. With `rebuild` it is made again, of the packages of today, or of what a
        registry has under that reference today. Raises `ImageError`, `HostError`, and what `import_oci` raises;
        everything is as it was then.
        """
        where, made_of = places or find_places(), config or ImageConfig()
        if made_of.source:
            instance = Instance(where, progress)
            return cls(await ensure_image(name, made_of=made_of, instance=instance, again=rebuild), where)
        store = ImageStore(where.images)
        return cls(await build_image(name, made_of, store=store, progress=progress, rebuild=rebuild), where)

    @classmethod
    async def open(cls, name: str = DEFAULT_IMAGE, *, places: Places | None = None) -> Self:
        """The image of that name. Raises `ImageNotFound` and `ImageCorrupt`."""
        where = places or find_places()
        return cls(await asyncio.to_thread(ImageStore(where.images).open, name), where)

    @classmethod
    async def list(cls, *, places: Places | None = None) -> Sequence[str]:
        """The names of all images, sorted."""
        where = places or find_places()
        images = await asyncio.to_thread(ImageStore(where.images).list_images)
        return [image.name for image in images]

    @classmethod
    async def import_oci(
        cls,
        source: str,
        name: str,
        *,
        max_bytes: int = MOST_UNPACKED,
        root: RootChoice = "auto",
        plain_http: bool = False,
        progress: ProgressListener = ignore_progress,
        places: Places | None = None,
    ) -> Self:
        """`name` leads to an image with the files of the container image at `source`; a former one is replaced.

        `source` is a name in a registry, `oci:PATH[:TAG]` (a layout: a folder or a tar), `docker-archive:FILE[:TAG]`
        (what `docker save` wrote), `dir:FOLDER` (a root file system as it lies there), or by `skopeo`
        `docker-daemon:NAME:TAG` and `containers-storage:NAME`. Its kernel is that of image `default`, which is built
        where it is missing. Its layers may unpack to `max_bytes`. Its files lie in the guest's memory or on a disk, as
        `root` says (see `ImageConfig`). `plain_http` speaks to the registry without TLS.

        Raises `ConfigError` for a source that is none, `ArtifactError` for an image that is damaged, hostile, or for
        another machine, and `HostError`. After any of them, and on cancel, everything is as it was before.
        """
        check_reader(check_import(source, name, root))  # before the kernel's image is built
        limits = _limit(max_bytes)
        where = places or find_places()
        kernel = await ensure_image(DEFAULT_IMAGE, instance=Instance(where, progress))
        record = await import_image(
            source,
            name,
            kernel=kernel,
            store=ImageStore(where.images),
            limits=limits,
            root=root,
            plain_http=plain_http,
            progress=progress,
        )
        return cls(record, where)

    @classmethod
    async def build_dockerfile(
        cls,
        file: HostPath,
        name: str,
        *,
        context: HostPath = "",
        arguments: Mapping[str, str] | None = None,
        rebuild: bool = False,
        max_bytes: int = MOST_UNPACKED,
        root: RootChoice = "auto",
        progress: ProgressListener = ignore_progress,
        places: Places | None = None,
    ) -> Self:
        """`name` leads to an image of what `buildah` makes of the Dockerfile `file`; a former one is replaced.

        Its COPY reads the folder `context`, by default that of `file`; `arguments` are for its ARGs. What buildah built
        before is taken from its own store, unless `rebuild`. buildah runs as this user has set it up. `max_bytes` and
        `root` are those of `import_oci`.

        Raises `ConfigError` where there is no such file or folder, `HostError` when buildah is missing or failed, with
        the end of what it wrote, and what `import_oci` raises. After any of them, and on cancel, the name leads where
        it led before.
        """
        where, path, folder = places or find_places(), Path(file), Path(context) if context else None
        check_dockerfile(path, name, context=folder, root=root)  # before the kernel's image is built
        limits = _limit(max_bytes)
        kernel = await ensure_image(DEFAULT_IMAGE, instance=Instance(where, progress))
        record = await build_dockerfile(
            path,
            name,
            context=folder,
            arguments=arguments,
            kernel=kernel,
            store=ImageStore(where.images),
            again=rebuild,
            limits=limits,
            root=root,
            progress=progress,
        )
        return cls(record, where)

    async def save(self, file: HostPath, *, progress: ProgressListener = ignore_progress) -> Saved:
        """The image is in `file`, a tar of an OCI layout (docs/reference/artifact.md); `load` makes an image of it.

        What was in `file` before is replaced at the end. Raises `ImageNotFound` when the name leads nowhere any more,
        `ImageCorrupt` when a file is not what was built, and `HostError`; the former file is as it was then.
        """
        return await save_image(
            self.name, Path(check_local(file, field="file")), instance=Instance(self._places, progress)
        )

    @classmethod
    async def load(
        cls,
        file: HostPath,
        name: str = "",
        *,
        replace: bool = False,
        progress: ProgressListener = ignore_progress,
        places: Places | None = None,
    ) -> Self:
        """`name`, by default the one that it had, leads to the image that `save` put into `file`.

        It is the same image, by its digest. Whoever made `file` is trusted with all that its guests do. Raises
        `ArtifactError` when it is damaged or no image, `ImageExists` when the name leads to another, unless `replace`,
        and `HostError`. After any of them, and on cancel, the name leads where it led before.
        """
        where = places or find_places()
        target = Target(instance=Instance(where, progress), name=name, replace_it=replace)
        return cls(await load_image(Path(check_local(file, field="file")), target), where)

    async def push(self, ref: str, *, plain_http: bool = False, progress: ProgressListener = ignore_progress) -> Saved:
        """The image is in a registry as `ref`, such as `registry.example/team/image:1`. What is there is not sent.

        Over TLS, unless `plain_http`, or on this host. Needs the extra `oci`. Raises what `save` raises, and
        `HostError` when the registry cannot be reached or refuses; `ref` is what it was then.
        """
        return await push_image(self.name, ref, plain_http=plain_http, instance=Instance(self._places, progress))

    @classmethod
    async def pull(
        cls,
        ref: str,
        name: str = "",
        *,
        replace: bool = False,
        plain_http: bool = False,
        progress: ProgressListener = ignore_progress,
        places: Places | None = None,
    ) -> Self:
        """`name` leads to the image that `push` put into a registry as `ref`, which is trusted with it.

        What is here is not fetched. All else is as for `load` and `push`.
        """
        where = places or find_places()
        target = Target(instance=Instance(where, progress), name=name, replace_it=replace)
        return cls(await pull_image(ref, target, plain_http=plain_http), where)

    async def remove(self, *, force: bool = False) -> None:
        """No image of this name exists. Machines and templates made of it live on.

        Raises `ImageInUse` where templates were made of it, unless `force`, `ImageNotFound`, and `StoreBusy`.
        """
        templates = await asyncio.to_thread(TemplateStore(self._places.templates).list_made_of, self.name)
        if templates and not force:
            raise ImageInUse(self.name, templates)
        await asyncio.to_thread(ImageStore(self._places.images).remove, self.name)


def _limit(max_bytes: int) -> ImportLimits:
    """Raises `ConfigError` for what is no size."""
    if max_bytes < 1:
        raise ConfigError("max_bytes", max_bytes, f"{max_bytes} bytes are no image", hint="8G is the default")
    return ImportLimits(unpacked_bytes=max_bytes)

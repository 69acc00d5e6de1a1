"""An image of a Dockerfile, which `buildah` builds: nothing here reads one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.config import check_import_name
from vmfork.container.importing import check_lies, import_image
from vmfork.errors import ConfigError, HostError
from vmfork.host.tool import find_tool, run_tool
from vmfork.progress import Progress, ProgressListener, ignore_progress

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vmfork.config.values import RootChoice
    from vmfork.container.limits import ImportLimits
    from vmfork.image import Image
    from vmfork.image.store import ImageStore

_PROGRAM = "buildah"


def find_buildah() -> str:
    """Where it is. Raises `HostError` when it is not installed."""
    hint = "install it: apt-get install buildah; or build it elsewhere, and import what that wrote: docker save"
    return find_tool(_PROGRAM, "which builds images of a Dockerfile", hint=hint)


def check_dockerfile(file: Path, name: str, *, context: Path | None, root: RootChoice = "auto") -> None:
    """Raises what `build_dockerfile` raises of what can be seen before anything is built."""
    check_import_name(name)
    check_lies(root)
    _check_paths(file, context or file.parent)
    find_buildah()


async def build_dockerfile(
    file: Path,
    name: str,
    *,
    context: Path | None = None,
    arguments: Mapping[str, str] | None = None,
    kernel: Image,
    store: ImageStore,
    again: bool = False,
    limits: ImportLimits | None = None,
    root: RootChoice = "auto",
    progress: ProgressListener = ignore_progress,
) -> Image:
    """`name` leads to an image of what buildah makes of the Dockerfile `file`, with its files in `context`.

    That is by default the file's folder. `arguments` are its ARGs; `limits` and `root` are `import_image`'s. Steps that
    were built before are not built again, unless `again`: buildah is used as its user set it up, and keeps what it
    built in its own store, without a name.

    Raises `ConfigError` where there is no such file, `HostError` when buildah is missing or failed, with the end of
    what it wrote, and what `import_image` raises. After any of them, and on cancel, the name leads where it led before,
    and nothing runs.
    """
    path, folder = _check_paths(file, context or file.parent)
    program = find_buildah()
    given = [option for key, value in (arguments or {}).items() for option in ("--build-arg", f"{key}={value}")]
    build = ["build", "--format", "oci", *(["--no-cache"] if again else ["--layers"]), *given]
    store.make()
    with store.staging() as staging:
        layout, told = f"oci:{staging / 'layout'}:latest", staging / "id"
        progress(Progress(task="image", step=f"building {file.name} with buildah"))
        await _run([program, *build, "--iidfile", str(told), "--file", str(path), "."], folder)
        await _run([program, "push", "--quiet", told.read_text().strip(), layout], folder)
        return await import_image(
            layout,
            name,
            kernel=kernel,
            store=store,
            limits=limits,
            root=root,
            told_as=f"dockerfile:{path}",
            progress=progress,
        )


def _check_paths(file: Path, folder: Path) -> tuple[Path, Path]:
    """Both, absolute. Raises `ConfigError` for what is not there."""
    given = (("dockerfile", file, file.is_file(), "file"), ("context", folder, folder.is_dir(), "folder"))
    for field, path, is_right, what in given:
        if not is_right:
            raise ConfigError(field, str(path), f"{path} is no {what}", hint=f"name the {what} that it is built of")
    return file.absolute(), folder.absolute()


async def _run(argv: Sequence[str], folder: Path) -> None:
    """The program has ended well. Raises `HostError` with the end of what it wrote."""
    log = bytearray()
    exit_code = await run_tool(argv, folder=folder, log=log)
    if exit_code:
        what = f"buildah {argv[1]} failed (exit status {exit_code})"
        raise HostError(what, hint="see its output", log=log.decode(errors="replace"))

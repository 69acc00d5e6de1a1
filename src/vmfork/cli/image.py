"""`vmfork image`: what guests boot."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from vmfork.api.image import MOST_UNPACKED
from vmfork.api.image import Image as ImportedImage
from vmfork.cli.complete import image_names
from vmfork.cli.loop import run_async
from vmfork.cli.options import VerbGroup, get_settings, json_option, parse_variables, plain_http_option
from vmfork.cli.show import show_json, show_table, shown_progress
from vmfork.config import Instance, find_places
from vmfork.errors import ConfigError, HostError, ImageInUse
from vmfork.image import ImageStore
from vmfork.image.build import build_image
from vmfork.machine.prepare import ensure_image, try_out
from vmfork.store import TemplateStore
from vmfork.travel.images.moving import Target, load_image, pull_image, push_image, save_image
from vmfork.units import MIB, format_bytes, format_mib, parse_size_mib

if TYPE_CHECKING:
    from vmfork.config import ImageConfig, VMConfig
    from vmfork.config.values import RootChoice
    from vmfork.image import Image
    from vmfork.progress import ProgressListener

# This much of a digest tells the images of a host apart.
_DIGEST_SHOWN = 12
_ROOTS = {"memory": "in memory", "disk": "on a disk"}

image_argument = click.argument("name", shell_complete=image_names)


root_option = click.option(
    "--root",
    metavar="auto|memory|disk",
    help="Where its files lie: in each guest's memory, or on a disk that all share.",
)
max_size_option = click.option("--max-size", metavar="SIZE", help="What its layers may unpack to (default 8G).")


@click.group("image", cls=VerbGroup)
def command() -> None:
    """Build, import, list and remove images."""


@command.command("build")
@click.argument("name", default="default", shell_complete=image_names)
@click.option("-p", "--package", "packages", multiple=True, metavar="P", help="Add a Debian package. Repeatable.")
@click.option("--bare", is_flag=True, help="Leave out the packages of the default image.")
@click.option("--suite", metavar="S", help="Debian release, such as trixie.")
@root_option
@click.option("--rebuild", is_flag=True, help="Build again, with the packages of today.")
@click.option(
    "-f",
    "--file",
    "dockerfile",
    type=click.Path(path_type=Path),
    metavar="DOCKERFILE",
    help="Build it of a Dockerfile, by buildah, in the place of packages.",
)
@click.option(
    "--context", type=click.Path(path_type=Path), metavar="DIR", help="What its COPY reads (default: its folder)."
)
@click.option("--build-arg", "arguments", multiple=True, metavar="K[=V]", help="Set an ARG of it. Repeatable.")
@max_size_option
def build(
    name: str,
    packages: tuple[str, ...],
    bare: bool,
    suite: str | None,
    root: str | None,
    rebuild: bool,
    dockerfile: Path | None,
    context: Path | None,
    arguments: tuple[str, ...],
    max_size: str | None,
) -> None:
    """Build the image NAME (default: default), unless it is there.

    Where the configuration has [image.NAME], it is made of that.
    """
    if dockerfile is not None:
        for field, value in (("package", packages), ("bare", bare), ("suite", suite)):
            if value:
                raise ConfigError(field, value, "is for an image of packages", hint="say it in the Dockerfile")
        _build_dockerfile(
            dockerfile,
            name,
            context=context or "",
            arguments=parse_variables(arguments, field="build_arg", option="--build-arg"),
            rebuild=rebuild,
            max_bytes=_parse_most(max_size),
            root=cast("RootChoice", root or "auto"),
        )
        return
    if context is not None or arguments or max_size is not None:
        reason = "--context, --build-arg and --max-size are for a Dockerfile"
        raise ConfigError("file", None, reason, hint="name it: -f Dockerfile")
    settings = get_settings({"image.suite": suite, "image.bare": bare or None, "image.root": root})
    config = settings.image
    if (named := settings.images.get(name)) is not None:
        said: dict[str, Any] = {"suite": suite, "bare": bare, "root": root}
        said = {key: value for key, value in said.items() if value}
        config = replace(named, **said)
    if packages:
        config = replace(config, packages=tuple(dict.fromkeys((*config.packages, *packages))))
    with shown_progress() as progress:
        image = run_async(_build(name, config, settings.vm, progress=progress, rebuild=rebuild))
    click.echo(
        f"image {image.name}: {format_bytes(image.size_bytes)}, root {_ROOTS[image.root_kind]}, "
        f"kernel {image.kernel_release}, guests need {_least(image)} or more"
    )


def _build_dockerfile(file: Path, name: str, **options: Any) -> None:
    with shown_progress() as progress:
        image = run_async(ImportedImage.build_dockerfile(file, name, **options, progress=progress))
    click.echo(f"image {image.name}: {format_bytes(image.size_bytes)}, of {file}")


def _parse_most(max_size: str | None) -> int:
    """In bytes."""
    return parse_size_mib(max_size, field="max_size") * MIB if max_size else MOST_UNPACKED


async def _build(
    name: str, config: ImageConfig, machine: VMConfig, *, progress: ProgressListener, rebuild: bool
) -> Image:
    """The image. Where machines can run it was tried out, so that its least memory is known before it is needed."""
    places = find_places()
    if config.source:
        instance = Instance(places, progress)
        image = await ensure_image(name, made_of=config, instance=instance, again=rebuild)
    else:
        image = await build_image(name, config, store=ImageStore(places.images), progress=progress, rebuild=rebuild)
    try:
        return (await try_out(image, replace(machine, image=name), Instance(places, progress))).image
    except HostError as error:
        click.echo(f"note: its least memory was not measured: {error.message}", err=True)
        return image


def _least(image: Image) -> str:
    return format_mib(image.min_memory_mib) if image.min_memory_mib else "?"


@command.command("import")
@click.argument("source")
@click.argument("name")
@max_size_option
@root_option
@plain_http_option
@json_option
def import_one(source: str, name: str, max_size: str | None, root: str | None, plain_http: bool, as_json: bool) -> None:
    """Make the image NAME of a container image.

    SOURCE is a name in a registry, oci:PATH[:TAG], docker-archive:FILE[:TAG], dir:FOLDER, and by skopeo
    docker-daemon:NAME:TAG or containers-storage:NAME.
    """
    most = _parse_most(max_size)
    with shown_progress() as progress:
        image = run_async(
            ImportedImage.import_oci(
                source,
                name,
                max_bytes=most,
                root=cast("RootChoice", root or "auto"),
                plain_http=plain_http,
                progress=progress,
            )
        )
    if as_json:
        show_json(_describe(ImageStore(find_places().images).open(name)))
        return
    click.echo(f"image {image.name}: {format_bytes(image.size_bytes)}, from {source}")


@command.command("ls")
@json_option
def list_all(as_json: bool) -> None:
    """List the images."""
    images = ImageStore(find_places().images).list_images()
    if as_json:
        show_json([_describe(image) for image in images])
        return
    rows = [
        (
            *(i.name, i.digest[:_DIGEST_SHOWN], format_bytes(i.size_bytes), i.root_kind),
            *(_least(i), i.kernel_release, i.created_at),
        )
        for i in images
    ]
    show_table(("NAME", "DIGEST", "SIZE", "ROOT", "LEAST RAM", "KERNEL", "CREATED"), rows)


@command.command("save")
@image_argument
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@json_option
def save(name: str, file: Path, as_json: bool) -> None:
    """Write the image NAME to FILE, for other hosts: a tar of an OCI layout."""
    with shown_progress() as progress:
        saved = run_async(save_image(name, file, instance=Instance(find_places(), progress)))
    if as_json:
        show_json({"image": name, "file": str(file), **asdict(saved)})
        return
    click.echo(f"image {name} is in {file}: {format_bytes(saved.size_bytes)}, {saved.digest}")


@command.command("load")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.argument("name", default="", required=False)
@click.option("--replace", "replace_it", is_flag=True, help="Take the name from another image.")
@json_option
def load(file: Path, name: str, replace_it: bool, as_json: bool) -> None:
    """Make an image of FILE, which `save` wrote, as NAME or under the name that it had.

    Whoever made FILE is trusted with all that its guests do.
    """
    with shown_progress() as progress:
        target = Target(instance=Instance(find_places(), progress), name=name, replace_it=replace_it)
        image = run_async(load_image(file, target))
    _tell_loaded(image, as_json=as_json)


@command.command("push")
@image_argument
@click.argument("ref", metavar="REF")
@plain_http_option
@json_option
def push(name: str, ref: str, plain_http: bool, as_json: bool) -> None:
    """Put the image NAME into a registry as REF: HOST/REPOSITORY:TAG. What is there already is not sent again."""
    with shown_progress() as progress:
        pushed = run_async(push_image(name, ref, plain_http=plain_http, instance=Instance(find_places(), progress)))
    if as_json:
        show_json({"image": name, "ref": ref, **asdict(pushed)})
        return
    sent = f"{format_bytes(pushed.sent_bytes)} of {format_bytes(pushed.size_bytes)} were sent"
    click.echo(f"image {name} is {ref}: {sent}, {pushed.digest}")


@command.command("pull")
@click.argument("ref", metavar="REF")
@click.argument("name", default="", required=False)
@click.option("--replace", "replace_it", is_flag=True, help="Take the name from another image.")
@plain_http_option
@json_option
def pull(ref: str, name: str, replace_it: bool, plain_http: bool, as_json: bool) -> None:
    """Make an image of what a registry has as REF, as NAME or under the name that it had.

    It is trusted as its registry is. What is here already is not fetched.
    """
    with shown_progress() as progress:
        target = Target(instance=Instance(find_places(), progress), name=name, replace_it=replace_it)
        image = run_async(pull_image(ref, target, plain_http=plain_http))
    _tell_loaded(image, as_json=as_json)


def _tell_loaded(image: Image, *, as_json: bool) -> None:
    if as_json:
        show_json(_describe(image))
        return
    click.echo(f"image {image.name}: {format_bytes(image.size_bytes)}, kernel {image.kernel_release}")


def _describe(image: Image) -> dict[str, Any]:
    return asdict(image) | {"size_bytes": image.size_bytes, "root_kind": image.root_kind}


@command.command("rm")
@click.argument("name", shell_complete=image_names)
@click.option("--force", is_flag=True, help="Remove it although templates were made of it.")
@json_option
def remove(name: str, force: bool, as_json: bool) -> None:
    """Remove the image NAME. Machines and templates made of it live on."""
    places = find_places()
    ImageStore(places.images).check_there(name)
    templates = TemplateStore(places.templates).list_made_of(name)
    if templates and not force:
        raise ImageInUse(name, templates)
    ImageStore(places.images).remove(name)
    if as_json:
        show_json({"removed": True, "image": name, "templates": templates})
        return
    click.echo(f"removed image {name}")
    if templates:
        click.echo(f"note: templates made of it: {', '.join(templates)}", err=True)

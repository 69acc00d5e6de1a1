"""`vmfork image`: what guests boot."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import click

from vmfork.cli.complete import image_names
from vmfork.cli.loop import run_async
from vmfork.cli.options import VerbGroup, get_settings, json_option
from vmfork.cli.show import show_json, show_table, shown_progress
from vmfork.config import Instance, find_places
from vmfork.errors import HostError, ImageInUse
from vmfork.image import ImageStore
from vmfork.image.build import build_image
from vmfork.machine.prepare import try_out
from vmfork.store import TemplateStore
from vmfork.units import format_bytes, format_mib

if TYPE_CHECKING:
    from vmfork.config import ImageConfig, VMConfig
    from vmfork.image import Image
    from vmfork.progress import ProgressListener

# This much of a digest tells the images of a host apart.
_DIGEST_SHOWN = 12
_ROOTS = {"memory": "in memory", "disk": "on a disk"}


@click.group("image", cls=VerbGroup)
def command() -> None:
    """Build, list and remove images."""


@command.command("build")
@click.argument("name", default="default", shell_complete=image_names)
@click.option("-p", "--package", "packages", multiple=True, metavar="P", help="Add a Debian package. Repeatable.")
@click.option("--bare", is_flag=True, help="Leave out the packages of the default image.")
@click.option("--suite", metavar="S", help="Debian release, such as trixie.")
@click.option(
    "--root",
    metavar="auto|memory|disk",
    help="Where its files lie: in each guest's memory, or on a disk that all share.",
)
@click.option("--rebuild", is_flag=True, help="Build again, with the packages of today.")
def build(name: str, packages: tuple[str, ...], bare: bool, suite: str | None, root: str | None, rebuild: bool) -> None:
    """Build the image NAME (default: default), unless it is there."""
    settings = get_settings({"image.suite": suite, "image.bare": bare or None, "image.root": root})
    config = settings.image
    if packages:
        config = replace(config, packages=tuple(dict.fromkeys((*config.packages, *packages))))
    with shown_progress() as progress:
        image = run_async(_build(name, config, settings.vm, progress=progress, rebuild=rebuild))
    click.echo(
        f"image {image.name}: {format_bytes(image.size_bytes)}, root {_ROOTS[image.root_kind]}, "
        f"kernel {image.kernel_release}, guests need {_least(image)} or more"
    )


async def _build(
    name: str, config: ImageConfig, machine: VMConfig, *, progress: ProgressListener, rebuild: bool
) -> Image:
    """The image. Where machines can run it was tried out, so that its least memory is known before it is needed."""
    places = find_places()
    image = await build_image(name, config, store=ImageStore(places.images), progress=progress, rebuild=rebuild)
    try:
        return (await try_out(image, replace(machine, image=name), Instance(places, progress))).image
    except HostError as error:
        click.echo(f"note: its least memory was not measured: {error.message}", err=True)
        return image


def _least(image: Image) -> str:
    return format_mib(image.min_memory_mib) if image.min_memory_mib else "?"


@command.command("ls")
@json_option
def list_all(as_json: bool) -> None:
    """List the images."""
    images = ImageStore(find_places().images).list_images()
    if as_json:
        show_json([asdict(image) | {"size_bytes": image.size_bytes, "root_kind": image.root_kind} for image in images])
        return
    rows = [
        (
            *(i.name, i.digest[:_DIGEST_SHOWN], format_bytes(i.size_bytes), i.root_kind),
            *(_least(i), i.kernel_release, i.created_at),
        )
        for i in images
    ]
    show_table(("NAME", "DIGEST", "SIZE", "ROOT", "LEAST RAM", "KERNEL", "CREATED"), rows)


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

"""`vmfork image`: what guests boot."""

from __future__ import annotations

from dataclasses import asdict, replace

import click

from vmfork.cli.loop import run_async
from vmfork.cli.options import get_settings, json_option
from vmfork.cli.show import show_json, show_table, shown_progress
from vmfork.config import check_name, find_places
from vmfork.image import build_image, list_images, remove_image
from vmfork.units import format_bytes, format_mib


@click.group("image")
def command() -> None:
    """Build, list and remove images."""


@command.command("build")
@click.argument("name", default="default")
@click.option("-p", "--package", "packages", multiple=True, metavar="P", help="Add a Debian package. Repeatable.")
@click.option("--suite", metavar="S", help="Debian release, such as trixie.")
@click.option("--rebuild", is_flag=True, help="Build again, with the packages of today.")
def build(name: str, packages: tuple[str, ...], suite: str | None, rebuild: bool) -> None:
    """Build the image NAME (default: default), unless it is there."""
    config = get_settings({"image.suite": suite}).image
    if packages:
        config = replace(config, packages=tuple(dict.fromkeys((*config.packages, *packages))))
    with shown_progress() as progress:
        image = run_async(
            build_image(name, config, images_dir=find_places().images, progress=progress, rebuild=rebuild)
        )
    click.echo(
        f"image {image.name}: {format_bytes(image.size_bytes)}, kernel {image.kernel_release}, "
        f"guests need {format_mib(image.min_memory_mib)} or more"
    )


@command.command("ls")
@json_option
def list_all(as_json: bool) -> None:
    """List the images."""
    images = list_images(images_dir=find_places().images)
    if as_json:
        show_json([asdict(image) | {"size_bytes": image.size_bytes} for image in images])
        return
    rows = [
        (i.name, format_bytes(i.size_bytes), format_mib(i.min_memory_mib), i.kernel_release, i.created_at)
        for i in images
    ]
    show_table(("NAME", "SIZE", "LEAST RAM", "KERNEL", "CREATED"), rows)


@command.command("rm")
@click.argument("name")
@json_option
def remove(name: str, as_json: bool) -> None:
    """Remove the image NAME."""
    remove_image(check_name(name, field="image"), images_dir=find_places().images)
    if as_json:
        show_json({"removed": True, "image": name})
        return
    click.echo(f"removed image {name}")

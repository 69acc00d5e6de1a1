"""`vmfork image`: build, ls, rm."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from vmfork.cli.report import print_json, print_rows, show_progress
from vmfork.config import ImageConfig, find_places
from vmfork.units import format_bytes, format_mib

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.group("image")
def command() -> None:
    """What machines boot: kernel and initramfs."""


@command.command("build")
@click.argument("name", default="default")
@click.option("--package", "packages", multiple=True, help="Add a Debian package by name; may be repeated.")
@click.option("--suite", default="trixie", show_default=True, help="Debian release.")
@click.option("--rebuild", is_flag=True, help="Build even when it is cached.")
def build(name: str, packages: Sequence[str], suite: str, rebuild: bool) -> None:
    """Build image NAME."""
    from vmfork.image import build_image  # noqa: PLC0415

    config = ImageConfig(suite=suite, packages=(*ImageConfig().packages, *packages))
    places = find_places()
    image = asyncio.run(build_image(name, config, images_dir=places.images, progress=show_progress, rebuild=rebuild))
    print(f"image {name!r}: kernel {image.kernel_release}, {format_bytes(image.size_bytes)} {image.digest[:12]}")


@command.command("ls")
@click.option("--json", "as_json", is_flag=True)
def ls(as_json: bool) -> None:
    """List images."""
    from vmfork.image import list_images  # noqa: PLC0415

    images = list_images(images_dir=find_places().images)
    if as_json:
        print_json(
            [
                {
                    "name": i.name,
                    "digest": i.digest,
                    "kernel": i.kernel_release,
                    "size_bytes": i.size_bytes,
                    "min_memory_mib": i.min_memory_mib,
                    "created_at": i.created_at,
                }
                for i in images
            ]
        )
        return
    rows = [
        (i.name, i.kernel_release, format_bytes(i.size_bytes), format_mib(i.min_memory_mib), i.created_at)
        for i in images
    ]
    print_rows(("NAME", "KERNEL", "SIZE", "LEAST MEMORY", "CREATED"), rows)


@command.command("rm")
@click.argument("name")
def rm(name: str) -> None:
    """Remove image NAME."""
    from vmfork.image import remove_image  # noqa: PLC0415

    remove_image(name, images_dir=find_places().images)

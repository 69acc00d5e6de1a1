"""Options that several commands share, and the settings they lead to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vmfork.config.loader import load_settings
from vmfork.config.places import find_places

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmfork.config.loader import Settings
    from vmfork.progress import ProgressListener

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
config_option = click.option(
    "--config", "config_file", type=click.Path(path_type=Path), metavar="FILE", help="Read this vmfork.toml."
)
cpus_option = click.option("--cpus", type=int, metavar="N", help="Virtual CPUs.")
memory_option = click.option("--memory", metavar="SIZE", help="Guest RAM: 256M, 1G, or a number of MiB.")


def get_settings(overrides: Mapping[str, Any] | None = None, *, config_file: Path | None = None) -> Settings:
    """The settings in force for the command that runs; the file is its own, else the one `vmfork --config` named."""
    path = config_file or click.get_current_context().find_root().params.get("config_file")
    return load_settings(path, None, overrides)


async def prepare_image(settings: Settings, progress: ProgressListener) -> None:
    """The image `default`, where it is the one to boot and `[image]` says what it is made of, is made of that."""
    if (made_of := settings.image_if_given) is not None:
        from vmfork.vm.plan import DEFAULT_IMAGE, ensure_image  # noqa: PLC0415 - most commands need none

        if settings.vm.image == DEFAULT_IMAGE:
            await ensure_image(DEFAULT_IMAGE, made_of=made_of, places=find_places(), progress=progress)

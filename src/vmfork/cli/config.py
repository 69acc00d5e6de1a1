"""`vmfork config`: what is in force, and why."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from vmfork.cli.options import config_option, get_settings, json_option
from vmfork.cli.show import show_json, show_table
from vmfork.config import find_places

if TYPE_CHECKING:
    from pathlib import Path


@click.command("config")
@config_option
@json_option
def command(config_file: Path | None, as_json: bool) -> None:
    """Show the configuration in force and where each value came from."""
    settings, places = get_settings(config_file=config_file), find_places()
    rows = [(field, value, settings.origins[field]) for field, value in settings.values().items()]
    for field, value, variable in (
        ("home", places.home, "VMFORK_HOME"),
        ("runtime", places.runtime, "VMFORK_RUNTIME_DIR"),
    ):
        rows.append((field, str(value), variable if os.environ.get(variable) else "default"))
    if as_json:
        values = {field: {"value": value, "origin": origin} for field, value, origin in rows}
        show_json({"file": settings.file, "settings": values})
        return
    # The value last: the list of packages is longer than any terminal is wide.
    show_table(("FIELD", "FROM", "VALUE"), [(field, origin, _as_text(value)) for field, value, origin in rows])


def _as_text(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)

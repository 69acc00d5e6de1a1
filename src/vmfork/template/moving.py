"""What `Template` and the command line do with templates that travel or are kept on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.template import arrival
from vmfork.template.persisted import follow, open_template, persist
from vmfork.template.sending import save_template

if TYPE_CHECKING:
    from pathlib import Path

    from vmfork.config import Instance, VMConfig
    from vmfork.template.source import Source

__all__ = ["load_template", "open_template", "persist", "save_template"]


async def load_template(
    path: Path, name: str, *, config: VMConfig, instance: Instance, replace_it: bool, wait_s: float
) -> Source:
    """As `arrival.load_template`; the template is kept on disk where the one before was, or `config` says so."""
    source = await arrival.load_template(
        path, name, config=config, instance=instance, replace_it=replace_it, wait_s=wait_s
    )
    await follow(source, config=config, instance=instance)
    return source

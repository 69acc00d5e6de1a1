"""Names that a shell completes: what is there now, read without opening it. A shell must see no error of ours."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from vmfork.config import find_places
from vmfork.errors import VMForkError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import click


def template_names(_context: click.Context, _option: click.Parameter, incomplete: str) -> list[str]:
    """The templates whose names begin so."""
    from vmfork.store import TemplateStore  # noqa: PLC0415 - a command that runs needs no completion

    with suppress(VMForkError, OSError):
        return _matching(TemplateStore(find_places().templates).list_names(), incomplete)
    return []


def image_names(_context: click.Context, _option: click.Parameter, incomplete: str) -> list[str]:
    """The images whose names begin so."""
    from vmfork.image import list_images  # noqa: PLC0415 - as above

    with suppress(VMForkError, OSError):
        return _matching((image.name for image in list_images(images_dir=find_places().images)), incomplete)
    return []


def _matching(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]

"""Names that a shell completes: those that exist now, read without opening anything. A shell must see no error."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from vmfork.errors import VMForkError

if TYPE_CHECKING:
    import click


def template_names(_context: click.Context, _option: click.Parameter, incomplete: str) -> list[str]:
    """The templates whose names begin with what was typed."""
    return _matching("templates", incomplete)


def image_names(_context: click.Context, _option: click.Parameter, incomplete: str) -> list[str]:
    """The images whose names begin with what was typed."""
    return _matching("images", incomplete)


def waiting_vms(_context: click.Context, _option: click.Parameter, incomplete: str) -> list[str]:
    """The machines that wait for an owner whose names or ids begin with what was typed."""
    return _matching("waiting", incomplete)


def shared_vms(_context: click.Context, _option: click.Parameter, incomplete: str) -> list[str]:
    """The machines that `start` made whose names or ids begin with what was typed."""
    return _matching("shared", incomplete)


def free_vms(_context: click.Context, _option: click.Parameter, incomplete: str) -> list[str]:
    """Both: the machines that no other process owns."""
    return _matching("free", incomplete)


def returning_vms(_context: click.Context, _option: click.Parameter, incomplete: str) -> list[str]:
    """The machines that `start` made, also those that ended not long ago."""
    return _matching("returning", incomplete)


def checkpoint_names(context: click.Context, _option: click.Parameter, incomplete: str) -> list[str]:
    """The checkpoints of the machine that was named before, whose names begin with what was typed."""
    return _matching("checkpoints", incomplete, context.params.get("vm_id") or "")


def living_vms(_context: click.Context, _option: click.Parameter, incomplete: str) -> list[str]:
    """The machines that run whose names or ids begin with what was typed."""
    return _matching("living", incomplete)


def _matching(kind: str, incomplete: str, *about: str) -> list[str]:
    from vmfork.cli.names import LISTS  # noqa: PLC0415 - a command that runs, and a help, need no completion

    with suppress(VMForkError, OSError):
        return [name for name in LISTS[kind](*about) if name.startswith(incomplete)]
    return []

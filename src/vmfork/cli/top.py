"""`vmfork top`: what the machines take, as it changes."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from vmfork.cli.loop import run_async
from vmfork.cli.options import json_option
from vmfork.cli.show import printable, show_json, show_table
from vmfork.config import find_places
from vmfork.errors import ConfigError
from vmfork.machine.use import layer_bytes, read_uses, shared_bytes, tell_memory
from vmfork.units import format_bytes, parse_duration_s

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmfork.machine.use import Use

_HEAD = ("ID", "NAME", "TEMPLATE", "CPU", "OWN", "SHARED")
_INTERVAL_S = 2.0


@click.command("top")
@click.option("--once", is_flag=True, help="Print the table once.")
@click.option("--interval", metavar="TIME", help="Look again after this time: 1, 500ms. Default: 2s.")
@json_option
def command(once: bool, interval: str | None, as_json: bool) -> None:
    """Show what each machine takes of the host, as it changes, and what they share.

    OWN is memory that would come back if the machine ended alone; SHARED is read from its template,
    and from the pages that it shares with other forks of one running machine. Ctrl-C ends it.
    """
    interval_s = _INTERVAL_S if interval is None else parse_duration_s(interval, field="interval")
    if interval_s <= 0:
        raise ConfigError("interval", interval, "must be more than 0", hint="leave it out for 2 s")
    if as_json:
        show_json(_tell(_look()))
    elif once or not Console().is_terminal:
        uses = _look()
        show_table(_HEAD, [*_rows(uses, {}, 0.0), _total(uses)])
    else:
        run_async(_follow(interval_s))


def _look() -> list[Use]:
    return read_uses(find_places().vms)


async def _follow(interval_s: float) -> None:
    before: dict[str, float] = {}
    took_s = 0.0
    with Live(console=Console(), screen=True, auto_refresh=False) as shown:
        while True:
            begun, uses = time.monotonic(), await asyncio.to_thread(_look)
            shown.update(_draw(uses, before, took_s), refresh=True)
            before = {use.record.id: use.cpu_s for use in uses}
            await asyncio.sleep(interval_s)
            took_s = time.monotonic() - begun


def _draw(uses: Sequence[Use], before: Mapping[str, float], took_s: float) -> Table:
    table = Table(*_HEAD, box=None, show_footer=True)
    for column, text in zip(table.columns, _total(uses), strict=True):
        column.footer = text
    for row in _rows(uses, before, took_s):
        table.add_row(*row)
    return table


def _rows(uses: Sequence[Use], before: Mapping[str, float], took_s: float) -> list[tuple[str, ...]]:
    """CPU is that of the last interval, in percent of one; seconds since its start the first time."""
    return [
        (
            use.record.id,
            printable(use.record.name),
            printable(use.record.template),
            _cpu(use, before, took_s),
            format_bytes(use.memory.private),
            format_bytes(use.memory.guest_shared),
        )
        for use in uses
    ]


def _cpu(use: Use, before: Mapping[str, float], took_s: float) -> str:
    if use.record.id not in before or not took_s:
        return f"{use.cpu_s:.1f} s"
    return f"{100 * (use.cpu_s - before[use.record.id]) / took_s:.0f} %"


def _total(uses: Sequence[Use]) -> tuple[str, ...]:
    """SHARED counts each page once."""
    own = sum(use.memory.private for use in uses)
    return f"{len(uses)} in all", "", "", "", format_bytes(own), format_bytes(shared_bytes(uses))


def _tell(uses: Sequence[Use]) -> dict[str, Any]:
    return {
        "machines": [
            {
                "id": use.record.id,
                "name": use.record.name,
                "template": use.record.template,
                "cpu_s": use.cpu_s,
                **tell_memory(use.record.facts, use.memory),
            }
            for use in uses
        ],
        "own_bytes": sum(use.memory.private for use in uses),
        "shared_bytes": shared_bytes(uses),
        "layer_bytes": layer_bytes(uses),
    }

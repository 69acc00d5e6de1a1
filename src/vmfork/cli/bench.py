"""`vmfork bench`: a quick look at what a fork costs here."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from vmfork.bench.look import take_look
from vmfork.bench.machine import describe_machine
from vmfork.cli.loop import run_async
from vmfork.cli.machine import find_template
from vmfork.cli.options import get_settings, json_option, template_option
from vmfork.cli.show import show_json, show_table, shown_progress
from vmfork.config import find_places
from vmfork.units import format_mib

if TYPE_CHECKING:
    from vmfork.api.template import Template
    from vmfork.bench.look import Look
    from vmfork.bench.stats import Estimate


@click.command("bench")
@template_option
@click.option("--rounds", type=click.IntRange(min=1), default=20, metavar="N", help="Make N forks, if there is time.")
@json_option
def command(name: str | None, rounds: int, as_json: bool) -> int:
    """Show what a fork costs here, beside the same fork made by hand.

    Without -t the template is `default`, built the first time. Both kinds take turns, for half a minute at most.
    """

    async def work() -> tuple[Template, Look]:
        template = await find_template(name, get_settings())
        with shown_progress() as progress:
            return template, await take_look(template, places=find_places(), rounds=rounds, progress=progress)

    template, look = run_async(work())
    if as_json:
        show_json(_describe(template, look))
    else:
        _show(template, look)
    return 0


_TEXTS = {
    "fork_s": "fork, adopted and checked",
    "first_exec_s": "fork to first exec",
    "raw_s": "the same by hand: the raw baseline",
    "ratio": "fork to first exec, over the raw baseline",
}


def _describe(template: Template, look: Look) -> dict[str, object]:
    return {
        "template": template.name,
        "generation": template.generation,
        "machine": describe_machine(),
        "qemu": template.manifest.traits["qemu.version"],
        "accel": template.hardware.accel,
        "memory_mib": template.hardware.memory_mib,
        "rounds": look.rounds,
        "figures": {name: asdict(estimate) for name, estimate in look.figures().items()},
        "samples_s": look.samples,
    }


def _show(template: Template, look: Look) -> None:
    hardware, qemu = template.hardware, template.manifest.traits["qemu.version"]
    click.echo(
        f"template {template.name}, {format_mib(hardware.memory_mib)}; "
        f"QEMU {qemu} with {hardware.accel.upper()}; rounds: {look.rounds}"
    )
    lines = [(_TEXTS[name], *_format(name, estimate)) for name, estimate in look.figures().items()]
    show_table(("FIGURE", "MEDIAN", "95 % INTERVAL"), lines)


def _format(name: str, estimate: Estimate) -> tuple[str, str]:
    if name == "ratio":
        return f"{estimate.value:.2f}", f"{estimate.low:.2f} to {estimate.high:.2f}"
    value, low, high = (seconds * 1000 for seconds in (estimate.value, estimate.low, estimate.high))
    return f"{value:.1f} ms", f"{low:.1f} to {high:.1f}"

"""`python -m benchmarks.suite`: what forking costs here, side by side with the same by hand and with others."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from benchmarks.suite.compare import TOLERANCE, compare_runs, find_regressions
from benchmarks.suite.context import Context
from benchmarks.suite.peers.install import install_peers
from benchmarks.suite.plots import draw
from benchmarks.suite.registry import find_measures
from benchmarks.suite.report import fill_documents
from benchmarks.suite.result import read_result
from benchmarks.suite.run import run_suite
from benchmarks.suite.words import format_figure, format_interval, format_target, format_value, format_verdict
from vmfork.cli.loop import run_async
from vmfork.cli.main import exit_status_of
from vmfork.cli.show import show_table, shown_progress
from vmfork.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.suite.compare import Change
    from benchmarks.suite.measure import Measure
    from benchmarks.suite.result import RowResult, RunResult

# Exit status of a check that found a ratio worse than the baseline's, or a measurement that failed.
REGRESSED = 5

_HEAD = ("FIGURE", "VALUE", "95 % INTERVAL", "TARGET", "VERDICT")
_file = click.Path(path_type=Path, dir_okay=False)
_folder = click.Path(path_type=Path, file_okay=False)


@click.command("suite", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="A look in a few minutes: few rounds, small sizes.")
@click.option("--only", "names", multiple=True, metavar="NAME", help="Run this measurement. Repeatable.")
@click.option("--asked", is_flag=True, help="Run all that is in no whole run.")
@click.option("--rounds", type=click.IntRange(min=1), metavar="N", help="Take N rounds of each, if there is time.")
@click.option("--json", "json_file", type=_file, metavar="FILE", help="Write the result, with all samples.")
@click.option("--plots", "plots", type=_folder, metavar="DIR", help="Draw the result (SVG).")
@click.option(
    "--check", "baseline", type=_file, metavar="FILE", help="Exit with 5 where a ratio got worse than in FILE."
)
@click.option("--compare", nargs=2, type=_file, metavar="A B", help="Run nothing: compare two results.")
@click.option("--from", "given", type=_file, metavar="FILE", help="Run nothing: show, draw or check this result.")
@click.option("--report", "checkout", type=_folder, metavar="DIR", help="Fill README and docs in DIR from the result.")
@click.option("--peers", type=click.Choice(["use", "install"]), default="use", help="Install what to compare with.")
@click.option("--list", "list_only", is_flag=True, help="List the measurements.")
def command(
    quick: bool,
    names: tuple[str, ...],
    asked: bool,
    rounds: int | None,
    json_file: Path | None,
    plots: Path | None,
    baseline: Path | None,
    compare: tuple[Path, Path] | None,
    given: Path | None,
    checkout: Path | None,
    peers: str,
    list_only: bool,
) -> int:
    """Measure what forking costs here: every figure with its interval and its target.

    Sides that are compared take turns in one run. All in all it takes 15 minutes at most; with --asked no measurement
    begins after 30. Exit status 5 with --check
    when a ratio got worse beyond noise, or a measurement failed.
    """
    if asked and names:
        raise ConfigError("asked", "true", "--asked and --only both say what to run", hint="give one of them")
    if list_only:
        listed = find_measures(names or ([] if asked else [""]), asked_for=asked)
        show_table(("NAME", "MEASURES"), [(measure.name, measure.title) for measure in listed])
        return 0
    if compare:
        return _compare(read_result(compare[0]), read_result(compare[1]))
    held = None if baseline is None else read_result(baseline)
    result = (
        read_result(given)
        if given is not None
        else _run(find_measures(names, asked_for=asked), quick=quick, rounds=rounds, peers=peers)
    )
    if json_file is not None:
        result.write(json_file)
    show_run(result)
    if plots is not None:
        _draw(result, plots)
    if checkout is not None:
        _report(result, checkout)
    return 0 if held is None else _check(held, result)


def _run(measures: Sequence[Measure], *, quick: bool, rounds: int | None, peers: str) -> RunResult:
    with shown_progress() as progress:

        async def work() -> RunResult:
            async with await Context.open(quick=quick, rounds=rounds, progress=progress) as context:
                if peers == "install":
                    await install_peers(context)
                return await run_suite(context, measures)

        return run_async(work())


def show_run(result: RunResult) -> None:
    """The table of every figure, with a line about where it comes from."""
    machine, versions = result.machine, result.versions
    click.echo(
        f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_mib']} MiB, Linux {machine['kernel']}; "
        f"QEMU {versions['qemu']}, {result.accel}; guest Linux {versions['guest_kernel']}; "
        f"vmfork {versions['vmfork']}, Python {versions['python']}; {result.mode} run, {result.duration_s:.0f} s"
    )
    cells = [
        (row.text, format_value(row), format_interval(row), format_target(row), format_verdict(row))
        for row in result.rows
    ]
    if sys.stdout.isatty():
        _show_coloured(cells, result.rows)
    else:
        show_table(_HEAD, cells)
    for name, measure in result.measures.items():
        if measure.rounds < measure.wanted_rounds:
            click.echo(f"{name}: {measure.rounds} of {measure.wanted_rounds} rounds, for lack of time")
        for note in measure.notes:
            click.echo(f"{name}: {note}")


def _show_coloured(cells: Sequence[Sequence[str]], rows: Sequence[RowResult]) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    colours = {"reached": "green", "missed": "red", "not run": "yellow"}
    table = Table(*(name.capitalize() for name in _HEAD))
    for line, row in zip(cells, rows, strict=True):
        table.add_row(*(escape(cell) for cell in line), style=colours.get(row.verdict))
    Console().print(table)


def _compare(before: RunResult, after: RunResult) -> int:
    show_table(("FIGURE", "FIRST", "SECOND", "FACTOR", "95 % INTERVAL", "VERDICT"), _lines(compare_runs(before, after)))
    if {**before.machine, "load": 0} != {**after.machine, "load": 0}:
        click.echo("the runs are of different machines: only ratios can be compared")
    return 0


def _lines(changes: Sequence[Change]) -> Sequence[Sequence[str]]:
    lines = []
    for change in changes:
        first, second = ("-" if v is None else format_figure(v, change.unit) for v in (change.before, change.after))
        factor = change.factor
        shown = ("-", "") if factor is None else (f"{factor.value:.3f}", f"{factor.low:.3f} to {factor.high:.3f}")
        remark = f"{change.verdict}: {change.reason}" if change.reason else change.verdict
        if change.verdict in ("better", "worse") and not change.side_by_side:
            remark += " (the machine's noise is in it)"
        lines.append((change.text, first, second, *shown, remark))
    return lines


def _check(baseline: RunResult, result: RunResult) -> int:
    regressions = find_regressions(baseline, result)
    failed = [measure for measure in result.measures.values() if measure.has_failed]
    for measure in failed:
        click.echo(f"{measure.title}: {measure.status}", err=True)
    if failed:
        return REGRESSED
    if not regressions:
        click.echo(f"no ratio is worse than the baseline's by more than {TOLERANCE:.0%} and noise")
        return 0
    click.echo("worse than the baseline beyond noise:", err=True)
    for line in _lines(regressions):
        click.echo("  " + "  ".join(line), err=True)
    return REGRESSED


def _draw(result: RunResult, folder: Path) -> None:
    for path in draw(result, find_measures(), folder):
        click.echo(str(path), err=True)


def _report(result: RunResult, checkout: Path) -> None:
    filled = fill_documents(result, checkout)
    if not filled:
        raise ConfigError(
            "report",
            str(checkout),
            "no document there has a place for results",
            hint="give a checkout; a place is between <!-- bench:NAME --> and <!-- /bench -->",
        )
    for path in filled:
        click.echo(f"filled {path}", err=True)


if __name__ == "__main__":
    sys.exit(exit_status_of(command, name="python -m benchmarks.suite"))

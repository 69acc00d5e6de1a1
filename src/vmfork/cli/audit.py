"""`vmfork template audit`: are forks of this template safe?"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from vmfork.api.template import DEFAULT, Template
from vmfork.cli.loop import run_async
from vmfork.cli.options import get_settings, json_option, prepare_image, template_argument
from vmfork.cli.show import show_json, show_table, shown_progress
from vmfork.errors import ConfigError
from vmfork.template.probes import Probe

if TYPE_CHECKING:
    from vmfork.progress import ProgressListener
    from vmfork.template.audit import AuditReport
    from vmfork.template.probes import Expectation

UNSAFE = 4


@click.command("audit")
@template_argument
@click.option("-n", "--forks", "count", type=int, default=4, show_default=True, metavar="N", help="Forks to compare.")
@click.option("--probe", "differing", multiple=True, metavar="NAME=CMD", help="Shell whose output must differ.")
@click.option("--same", "equal", multiple=True, metavar="NAME=CMD", help="Shell whose output must be the same.")
@json_option
def audit(name: str, count: int, differing: tuple[str, ...], equal: tuple[str, ...], as_json: bool) -> int:
    """Fork NAME several times, compare the forks, and tell whether they are safe.

    The exit status is 0 when they are, and 4 when something is alike that must differ, or the other way round.
    """
    probes = [*(_parse_probe(text, "differs") for text in differing), *(_parse_probe(text, "same") for text in equal)]
    settings = get_settings()

    async def work(progress: ProgressListener) -> AuditReport:
        if name == DEFAULT:
            await prepare_image(settings, progress)
            template = await Template.ensure(name, settings.vm, progress=progress)
        else:
            template = await Template.open(name, config=settings.vm)
        return await template.audit(count, probes=probes, progress=progress)

    with shown_progress() as progress:
        report = run_async(work(progress))
    _show(report, as_json=as_json)
    return 0 if report.safe else UNSAFE


def _parse_probe(text: str, expect: Expectation) -> Probe:
    name, equals, command = text.partition("=")
    if not equals:
        raise ConfigError("probe", text, f"{text!r} is not NAME=CMD", hint="name it: --probe 'token=cat /run/token'")
    return Probe(name=name, command=command, expect=expect)


def _show(report: AuditReport, *, as_json: bool) -> None:
    if as_json:
        show_json(asdict(report) | {"safe": report.safe})
        return
    rows = [(row.name, row.expect, row.verdict, row.detail) for row in report.rows]
    show_table(("PROBE", "EXPECTED", "VERDICT", "FOUND"), rows)
    click.echo()
    bad = [row.name for row in report.rows if row.verdict in ("unsafe", "failed")]
    if bad:
        click.echo(f"template {report.template}: {report.forks} forks, NOT safe: {', '.join(bad)}")
    else:
        click.echo(f"template {report.template}: {report.forks} forks, safe")

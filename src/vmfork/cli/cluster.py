"""`vmfork cluster`: many hosts, one factory, as the cluster that this host belongs to tells it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import click

from vmfork.cli.loop import run_async
from vmfork.cli.options import VerbGroup, json_option
from vmfork.cli.show import show_json, show_table
from vmfork.cluster.cluster import Cluster
from vmfork.config.endpoint import parse_metrics_address
from vmfork.late import import_late
from vmfork.rpc.packages import check_packages
from vmfork.service.base.exposition import Exposition
from vmfork.units import format_bytes, format_mib

if TYPE_CHECKING:
    from collections.abc import Mapping

_DIGEST_SHOWN = 12
_address = click.option(
    "--address", default="auto", metavar="HOST:PORT", help="The Ray cluster; by default the one of this host."
)


@click.group("cluster", cls=VerbGroup)
def command() -> None:
    """Show nodes, templates and machines of a cluster."""


@command.command("status")
@_address
@json_option
def status(address: str, as_json: bool) -> None:
    """Show how many nodes, templates and machines there are, and what was lost."""
    told = run_async(_ask(address))
    if as_json:
        show_json(told)
        return
    click.echo(f"nodes      {len(told['nodes'])}")
    click.echo(f"templates  {len(told['templates'])}")
    click.echo(f"machines   {len(told['machines'])}")
    click.echo(f"to give    {format_mib(sum(node['to_give_mib'] for node in told['nodes']))}")
    for node, machines in told["lost"].items():
        click.echo(f"lost       {node}, with {len(machines)} machines")


@command.command("nodes")
@_address
@json_option
def nodes(address: str, as_json: bool) -> None:
    """List the nodes, with what each has and has room for."""
    found = run_async(_ask(address))["nodes"]
    if as_json:
        show_json(found)
        return
    show_table(
        ["NODE", "STATE", "TEMPLATES", "MACHINES", "WAITING", "TO GIVE", "QEMU", "ACCELERATOR"],
        [
            [node["name"], node["state"], node["templates"], node["machines"], node["waiting"],
             format_mib(node["to_give_mib"]), ",".join(node["emulators"]), ",".join(node["accels"])]
            for node in found
        ],
    )  # fmt: skip


@command.command("templates")
@_address
@json_option
def templates(address: str, as_json: bool) -> None:
    """List the templates, with the nodes that have each."""
    found = run_async(_ask(address))["templates"]
    if as_json:
        show_json(found)
        return
    rows = [
        [each["name"], each["digest"][:_DIGEST_SHOWN], format_bytes(each["size_bytes"]), ",".join(each["nodes"])]
        for each in found
    ]
    show_table(["TEMPLATE", "DIGEST", "TRAVELS AS", "NODES"], rows)


@command.command("ps")
@_address
@json_option
def ps(address: str, as_json: bool) -> None:
    """List the machines of the cluster, with the node of each."""
    found = run_async(_ask(address))["machines"]
    if as_json:
        show_json(found)
        return
    columns = ("id", "node", "template", "key", "created_at")
    show_table([column.upper() for column in columns], [[each[column] for column in columns] for each in found])


@command.command("metrics")
@_address
@click.option("--serve", "where", metavar="ADDRESS", help="Answer there (unix:/PATH, 127.0.0.1:PORT) until a signal.")
def metrics(address: str, where: str | None) -> None:
    """Print what all nodes count, as Prometheus reads it, or serve it over HTTP."""
    check_packages()
    # Prometheus's client is an optional extra.
    node_metrics = import_late("vmfork.service.cluster.metrics", "NodeMetrics")
    if where is None:
        _, text = node_metrics(run_async(_ask(address))).registry.render()
        click.echo(text.decode(), nl=False)
        return
    endpoint = parse_metrics_address(where, field="serve")

    async def serve() -> None:
        async with Cluster.connect(address) as cluster:

            async def render() -> tuple[str, bytes]:
                told: tuple[str, bytes] = node_metrics(await cluster.status()).registry.render()
                return told

            async with aclosing(Exposition(endpoint, render)) as exposition:
                await exposition.open()
                click.echo(f"metrics at {exposition.address}")
                await ended.wait()

    ended = asyncio.Event()
    run_async(serve(), on_first=ended.set)


async def _ask(address: str) -> Mapping[str, Any]:
    async with Cluster.connect(address) as cluster:
        return await cluster.status()

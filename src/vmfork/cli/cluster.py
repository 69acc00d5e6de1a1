"""`vmfork cluster`: many hosts, one factory, as this host's cluster tells it, or a list of servers."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import aclosing
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from vmfork.cli.loop import run_async
from vmfork.cli.options import VerbGroup, get_settings, json_option
from vmfork.cli.show import show_json, show_table
from vmfork.cluster.cluster import Cluster
from vmfork.config.endpoint import parse_metrics_address
from vmfork.config.servers import Access, read_servers, read_token
from vmfork.errors import ConfigError
from vmfork.late import import_late
from vmfork.rpc.packages import check_packages
from vmfork.service.base.exposition import Exposition
from vmfork.units import format_bytes, format_mib

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractAsyncContextManager

_DIGEST_SHOWN = 12
_ACCESS = (
    click.option("--token-file", metavar="FILE", help="The token that lets callers in. No other user may read it."),
    click.option("--ca", default="", metavar="FILE", help="The authority whose certificates are believed, in PEM."),
    click.option("--cert", "certificate", default="", metavar="FILE", help="Our certificate, in PEM."),
    click.option("--key", default="", metavar="FILE", help="The key of our certificate, in PEM."),
    click.option(
        "--plaintext", is_flag=True, help="Encrypt nothing, on no network: who reads it has the token, and all else."
    ),
)


@dataclass(frozen=True, slots=True)
class _Where:
    """The cluster that is asked: of Ray at `address`, by default of this host, or of `servers`."""

    address: str | None
    servers: str
    access: Access


def _with_access(verb: Callable[..., None]) -> Callable[..., None]:
    """`verb`, given `access` in place of the options that say it."""

    @wraps(verb)
    def call(token_file: str | None, ca: str, certificate: str, key: str, *, plaintext: bool, **others: Any) -> None:
        token = read_token(token_file) if token_file else ""
        access = Access(token=token, ca=ca, certificate=certificate, key=key, plaintext=plaintext)
        verb(access=access, **others)

    for option in reversed(_ACCESS):
        call = option(call)
    return call


def _with_cluster(verb: Callable[..., None]) -> Callable[..., None]:
    """`verb`, given `where` in place of the options that say it."""

    @wraps(verb)
    def call(address: str | None, servers: str, *, access: Access, **others: Any) -> None:
        verb(where=_Where(address, servers, access), **others)

    wrapped = _with_access(call)
    for option in (
        click.option("--servers", default="", metavar="FILE|LIST", help="Servers: HOST:PORT,... or a file of them."),
        click.option("--address", metavar="HOST:PORT", help="The Ray cluster; by default the one of this host."),
    ):
        wrapped = option(wrapped)
    return wrapped


@click.group("cluster", cls=VerbGroup)
def command() -> None:
    """Show nodes, templates and machines of a cluster."""


@command.command("status")
@_with_cluster
@json_option
def status(where: _Where, *, as_json: bool) -> None:
    """Show how many nodes, templates and machines there are, and what was lost."""
    told = run_async(_ask(where))
    if as_json:
        show_json(told)
        return
    click.echo(f"nodes      {len(told['nodes'])}")
    click.echo(f"templates  {len(told['templates'])}")
    click.echo(f"machines   {len(told['machines'])}")
    click.echo(f"to give    {format_mib(sum(node['to_give_mib'] for node in told['nodes']))}")
    for node, machines in told["lost"].items():
        click.echo(f"lost       {node}, with {len(machines)} machines")
    for node, why in told["missing"].items():
        click.echo(f"missing    {node}: {why}")


@command.command("nodes")
@_with_cluster
@json_option
def nodes(where: _Where, *, as_json: bool) -> None:
    """List the nodes, with what each has and has room for."""
    found = run_async(_ask(where))["nodes"]
    if as_json:
        show_json(found)
        return
    show_table(
        ["NODE", "STATE", "TEMPLATES", "MACHINES", "POOLED", "WAITING", "TO GIVE", "QEMU", "ACCELERATOR"],
        [
            [node["name"], node["state"], node["templates"], node["machines"], node["pooled"], node["waiting"],
             format_mib(node["to_give_mib"]), ",".join(node["emulators"]), ",".join(node["accels"])]
            for node in found
        ],
    )  # fmt: skip


@command.command("templates")
@_with_cluster
@json_option
def templates(where: _Where, *, as_json: bool) -> None:
    """List the templates, with the nodes that have each."""
    found = run_async(_ask(where))["templates"]
    if as_json:
        show_json(found)
        return
    rows = [
        [each["name"], each["digest"][:_DIGEST_SHOWN], format_bytes(each["size_bytes"]), ",".join(each["nodes"])]
        for each in found
    ]
    show_table(["TEMPLATE", "DIGEST", "TRAVELS AS", "NODES"], rows)


@command.command("ps")
@_with_cluster
@json_option
def ps(where: _Where, *, as_json: bool) -> None:
    """List the machines of the cluster, with the node of each."""
    found = run_async(_ask(where))["machines"]
    if as_json:
        show_json(found)
        return
    columns = ("id", "node", "template", "key", "created_at")
    show_table([column.upper() for column in columns], [[each[column] for column in columns] for each in found])


@command.command("metrics")
@_with_cluster
@click.option("--serve", "at", metavar="ADDRESS", help="Answer there (unix:/PATH, 127.0.0.1:PORT) until a signal.")
def metrics(at: str | None, *, where: _Where) -> None:
    """Print what all nodes count, as Prometheus reads it, or serve it over HTTP."""
    check_packages()
    # Prometheus's client is an optional extra.
    node_metrics = import_late("vmfork.service.cluster.metrics", "NodeMetrics")
    if at is None:
        _, text = node_metrics(run_async(_ask(where))).registry.render()
        click.echo(text.decode(), nl=False)
        return
    endpoint = parse_metrics_address(at, field="serve")

    async def serve() -> None:
        async with _open(where) as cluster:

            async def render() -> tuple[str, bytes]:
                told: tuple[str, bytes] = node_metrics(await cluster.status()).registry.render()
                return told

            async with aclosing(Exposition(endpoint, render, setting="--serve")) as exposition:
                await exposition.open()
                click.echo(f"metrics at {exposition.address}")
                await ended.wait()

    ended = asyncio.Event()
    run_async(serve(), on_first=ended.set)


@command.command("serve")
@click.option(
    "--listen", default="127.0.0.1:7300", metavar="HOST:PORT", show_default=True, help="Where callers come in."
)
@click.option("--name", default="", metavar="NAME", help="What it calls itself; by default the host's name.")
@click.option("--label", "labels", multiple=True, metavar="K=V", help="What callers choose nodes by. Repeatable.")
@_with_access
@json_option
def serve(listen: str, name: str, labels: tuple[str, ...], *, access: Access, as_json: bool) -> None:
    """Serve this host's templates and machines to the callers of a list of servers, until a signal comes."""
    check_packages()
    own_labels = dict(_split_label(label) for label in labels)
    # gRPC takes 60 ms to load.
    serving = import_late("vmfork.service.node", "NodeServer")
    settings = get_settings()
    server = serving(listen, access, name=name, labels=own_labels, config=settings.factory)

    def tell(address: str) -> None:
        if as_json:
            click.echo(json.dumps({"state": "serving", "pid": os.getpid(), "address": address}))
        click.echo(f"cluster: serving at {address}", err=True)

    run_async(server.run(on_ready=tell), on_first=server.quit)


def _split_label(label: str) -> tuple[str, str]:
    key, equals, value = label.partition("=")
    if not key or not equals or not label.isprintable():
        raise ConfigError("label", label, f"{label!r} is no label", hint="write KEY=VALUE")
    return key, value


def _open(where: _Where) -> AbstractAsyncContextManager[Cluster]:
    if not where.servers:
        if where.access != Access():
            reason = "is for servers, and none is named: Ray has a token of its own"
            raise ConfigError("access", "", reason, hint="name them: --servers HOST:PORT,...")
        return Cluster.connect("auto" if where.address is None else where.address)
    if where.address is not None:
        reason = "is a cluster of Ray's, and servers are named as well"
        raise ConfigError("address", where.address, reason, hint="leave out one of the two: --address or --servers")
    a = where.access
    servers = read_servers(where.servers)
    return Cluster.at(servers, token=a.token, ca=a.ca, certificate=a.certificate, key=a.key, plaintext=a.plaintext)


async def _ask(where: _Where) -> Mapping[str, Any]:
    async with _open(where) as cluster:
        return await cluster.status()

"""`vmfork cluster` over a list of servers: what it shows, and what it says where one is down or lets nobody in.

The nodes are in this process and only say that they made a machine; commands, lines and encryption are real.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import urllib.request
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.ports import free_port
from tests.unit.service.node.test_server import (
    ServedNode,
    certificates,  # noqa: F401 - a fixture
    order,
    serving,
    with_certificate,
)
from vmfork.cluster.servers import ServerPeers
from vmfork.config.servers import Access
from vmfork.errors import ConfigError, NodeRefused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# Several commands, one after the other: a process for each would take longer than they do.
_ALL = """
import contextlib, io, json, sys
from vmfork.cli.main import main
for argv in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        status = main(["cluster", *argv])
    print(json.dumps([status, out.getvalue(), err.getvalue()]))
"""


@dataclass
class Said:
    status: int
    out: str
    err: str

    @property
    def told(self):
        return json.loads(self.out)

    @property
    def rows(self) -> list[list[str]]:
        """Of a table, without its head."""
        return [line.split() for line in self.out.splitlines()[1:]]


async def ask(*commands: tuple[str, ...]) -> list[Said]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _ALL, json.dumps(commands), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    return [Said(*json.loads(line)) for line in out.splitlines()]


@pytest.fixture
def token_file(tmp_path) -> str:
    return write_token(tmp_path / "token", "right")


def write_token(path, token: str, mode: int = 0o600) -> str:
    path.write_text(token + "\n")
    path.chmod(mode)
    return str(path)


async def test_what_is_there_is_told_as_a_table_and_as_json_though_a_server_is_down(token_file, tmp_path) -> None:
    down = f"127.0.0.1:{free_port()}"
    nodes = ServedNode("a", labels={"zone": "west"}), ServedNode("b", holds=False)
    machine = await nodes[0].fork(order())
    async with serving(*nodes) as (addresses, _):
        listed = tmp_path / "servers"
        listed.write_text("# all\n" + "\n".join([*addresses, f"{down}  # is down"]) + "\n")
        where = ("--servers", str(listed), "--token-file", token_file)
        verbs = ("status", "nodes", "templates", "ps")
        shown = await ask(*((verb, *where, *more) for verb in verbs for more in ((), ("--json",))), ("metrics", *where))
    assert [each.status for each in shown] == [0] * 9
    status, status_told, rows, nodes_told, templates, templates_told, ps, ps_told, metrics = shown
    lines = dict(line.split(None, 1) for line in status.out.splitlines())
    assert (lines["nodes"], lines["templates"], lines["machines"]) == ("2", "1", "1")
    assert lines["missing"].startswith(f"{down}: ")
    whole = status_told.told
    assert [each["name"] for each in whole["nodes"]] == sorted(addresses)
    assert list(whole["missing"]) == [down]
    first, second = addresses
    assert [row[:4] for row in rows.rows] == sorted([[first, "ready", "1", "1"], [second, "ready", "0", "0"]])
    assert nodes_told.told == whole["nodes"]
    assert {each["name"]: each["labels"] for each in nodes_told.told}[first] == {"zone": "west"}
    assert [(row[0], row[-1]) for row in templates.rows] == [("py", addresses[0])]
    assert templates_told.told == whole["templates"]
    assert [row[:4] for row in ps.rows] == [[machine.id, addresses[0], "py", "k"]]
    assert ps_told.told == whole["machines"]
    families = {each.name: each for each in text_string_to_metric_families(metrics.out)}

    def series(name: str) -> dict[str, float]:
        return {each.labels["node"]: each.value for each in families[name].samples}

    assert series("vmfork_node_ready") == {addresses[0]: 1, addresses[1]: 1, down: 0}
    assert series("vmfork_node_machines") == {addresses[0]: 1, addresses[1]: 0}


async def test_who_is_not_let_in_is_told_why_by_each_command(token_file, tmp_path) -> None:
    wrong = write_token(tmp_path / "wrong", "not-the-one")
    open_to_all = write_token(tmp_path / "open", "right", 0o644)
    down = f"127.0.0.1:{free_port()}"
    async with serving(ServedNode("a")) as ((address,), _):
        verbs = ("status", "nodes", "templates", "ps", "metrics")
        *refused, none, shared, gone, nowhere, nameless, both = await ask(
            *((verb, "--servers", address, "--token-file", wrong) for verb in verbs),
            ("status", "--servers", address, "--token-file", wrong, "--json"),
            ("status", "--servers", address),
            ("status", "--servers", address, "--token-file", open_to_all),
            ("status", "--servers", down, "--token-file", token_file, "--json"),
            ("status", "--servers", "nonsense", "--token-file", token_file),
            ("status", "--token-file", token_file),
            ("status", "--servers", address, "--token-file", token_file, "--address", "auto"),
        )
    *shown, told = refused
    for each in shown:
        assert (each.status, each.out) == (1, "")
        assert f"error: node {address} cannot be used: its token is another than ours" in each.err
        assert "hint: " in each.err
    assert (told.status, told.told["error"]["code"]) == (1, NodeRefused.code)
    assert "its token is another than ours" in told.told["error"]["message"]
    assert "not-the-one" not in "".join(each.out + each.err for each in refused)
    assert "it asks for a token, and none was given" in none.err
    assert "others may read" in shared.err
    assert down in gone.told["error"]["message"]
    assert "vmfork cluster serve" in gone.told["error"]["hint"]
    assert "'nonsense' is not the address of a server" in nowhere.err
    assert "none is named" in nameless.err
    assert "leave out one of the two: --address or --servers" in both.err
    assert all(each.status for each in (none, shared, gone, nowhere, nameless, both))


async def test_a_certificate_of_another_authority_is_told_by_each_command(certificates) -> None:  # noqa: F811
    server = with_certificate(certificates, "server")

    def say(name: str, ca: str = "ours") -> tuple[str, ...]:
        pair = certificates[name]
        return "--ca", certificates[ca], "--cert", pair.certificate, "--key", pair.key

    async with serving(ServedNode("a"), access=server) as ((address,), _):
        where = ("--servers", address)
        seen, *refused = await ask(
            ("nodes", *where, *say("caller")),
            ("nodes", *where, *say("stranger")),
            ("ps", *where, "--ca", certificates["ours"]),
            ("metrics", *where, *say("caller", "others")),
        )
    assert [row[:2] for row in seen.rows] == [[address, "ready"]]
    reasons = ("does not take our certificate", "asks for a certificate", "its certificate is not believed")
    for each, why in zip(refused, reasons, strict=True):
        assert (each.status, each.out) == (1, "")
        assert f"error: node {address} cannot be used: " in each.err
        assert why in each.err


@asynccontextmanager
async def until_a_signal(*command: str, **options) -> AsyncIterator[str]:
    """The first line of a vmfork command that runs in the block, and ends well by SIGTERM behind it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "vmfork", *command, stdout=asyncio.subprocess.PIPE, **options
    )
    try:
        assert process.stdout is not None
        yield (await process.stdout.readline()).decode()
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_metrics_of_a_list_are_served_until_a_signal(token_file) -> None:
    async with serving(ServedNode("a")) as ((address,), _):
        command = ("cluster", "metrics", "--servers", address, "--token-file", token_file, "--serve", "127.0.0.1:0")
        async with until_a_signal(*command) as first_line:
            told, _, at = first_line.strip().rpartition(" ")
            assert told == "metrics at"
            url = at if at.startswith("http") else f"http://{at}/metrics"

            def read() -> str:
                with urllib.request.urlopen(url) as answer:
                    return answer.read().decode()

            assert f'vmfork_node_ready{{node="{address}"}} 1.0' in await asyncio.to_thread(read)


@pytest.mark.parametrize("named", [False, True], ids=["of its folder", "of --config"])
async def test_a_server_makes_machines_as_the_file_says(named, token_file, tmp_path) -> None:
    """Of what `[vm]` says, its emulator is what a node looks at though it has no machine."""
    folder = tmp_path / "configured"
    folder.mkdir()
    written = folder / "vmfork.toml"
    written.write_text('[vm]\nqemu = "/no/such/qemu"\n')
    file = ("--config", str(written)) if named else ()
    env = {**os.environ, "VMFORK_HOME": str(tmp_path / "home"), "VMFORK_RUNTIME_DIR": str(tmp_path / "run")}
    command = (*file, "cluster", "serve", "--listen", "127.0.0.1:0", "--token-file", token_file, "--json")
    async with until_a_signal(*command, cwd=tmp_path if named else folder, env=env) as first_line:
        address = json.loads(first_line)["address"]
        async with ServerPeers((address,), Access(token="right")) as peers:
            with pytest.raises(ConfigError, match="/no/such/qemu") as refused:
                await peers.call(address, "report")
        assert refused.value.field == "vm.qemu"

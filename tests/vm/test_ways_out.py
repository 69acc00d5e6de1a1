"""Ways out of real machines: programs of their own reach what the policy names, and nothing else."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import http.server
import io
import json
import signal
import socket
import tarfile
import threading
import zipfile
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.vm.cli_runner import Running
from tests.vm.cli_runner import vmfork as command
from tests.vm.least import boots_in_its_least
from tests.vm.test_detached import end
from tests.vm.test_ports import ATTEMPTS
from vmfork.aio import VM, Allow, Factory, Template
from vmfork.config import FactoryConfig, ImageConfig, VMConfig, find_places
from vmfork.errors import ConfigError, PortError, StoreBusy
from vmfork.image import ImageStore
from vmfork.image.build import build_image
from vmfork.machine.folder import folder_of
from vmfork.machine.least import ample_memory_mib
from vmfork.machine.ways import find_held

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

pytestmark = [pytest.mark.vm, pytest.mark.kvm]

LIMIT_S = 120.0


@contextmanager
def serving(pages: Mapping[str, bytes]) -> Iterator[int]:
    """The port of a web server on the host's loopback."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            content = pages.get(self.path.partition("?")[0])
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Type", "text/html" if self.path.endswith("/") else "application/octet-stream")
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def names(monkeypatch) -> dict[str, str]:
    """What names lead to on the host, beside what they do anyway: `name.test` to where the test says."""
    table: dict[str, str] = {}
    before = socket.getaddrinfo

    def look_up(host, port, *args, **kwargs):
        return before(table.get(host, host), port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return table


def fetch(url: str) -> list[str]:
    return ["curl", "-sS", "--max-time", "60", url]


@pytest.mark.qemu
async def test_programs_reach_what_the_list_names_and_are_told_why_not(template, names) -> None:
    names |= {"index.test": "127.0.0.1", "meta.test": "169.254.169.254", "local.test": "127.0.0.1"}
    with serving({"/": b"here"}) as port:
        policy = Allow(f"index.test:{port}", f"127.0.0.1:{port}", "meta.test", "local.test")
        async with template.fork(network=policy) as vm, template.fork() as other:
            got = await vm.exec(fetch(f"http://index.test:{port}/"), timeout_s=LIMIT_S, check=True)
            assert got.stdout == "here"
            assert (await vm.exec(fetch("http://evil.test/"), timeout_s=LIMIT_S)).stdout == (
                "vmfork: evil.test is not in the list\n"
            )
            tunnel = await vm.exec(fetch("https://evil.test/"), timeout_s=LIMIT_S)
            assert "403" in tunnel.stderr
            for name, address in (("meta.test", "169.254.169.254"), ("local.test", "127.0.0.1")):
                got = await vm.exec(fetch(f"http://{name}/"), timeout_s=LIMIT_S)
                assert got.stdout.startswith(f"vmfork: {name} leads to {address} is ")
            # By its own name, and address, where no proxy is known: a client of a database, say.
            plain = f"import socket; s = socket.create_connection(('index.test', {port}))\n"
            plain += "s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')\n"
            plain += "print(s.getpeername()[0], s.makefile('rb').read()[-4:])"
            said = await vm.exec(["python3", "-c", plain], clean_env=True, timeout_s=LIMIT_S, check=True)
            assert said.stdout == "127.0.1.2 b'here'\n"
            assert [(each.host, each.allowed) for each in vm.network_log] == [
                ("index.test", True), ("evil.test", False), ("evil.test", False), ("meta.test", False),
                ("local.test", False), ("index.test", True),
            ]  # fmt: skip
            counts = vm.network_counts
            assert (counts.allowed, counts.denied, vm.network) == (2, 4, policy)
            # Nothing of it is in the template, nor in a fork that was given no policy.
            assert "proxy" not in (await other.exec(["env"], check=True)).stdout.lower()
            assert b"index.test" not in await other.read_file("/etc/hosts")
            with pytest.raises(PortError, match="nothing listens"):
                await other.open_connection(3128)
            assert (other.network, other.network_log, other.network_counts.allowed) == ("none", (), 0)


async def test_all_else_has_no_way_out_with_a_policy_either(template) -> None:
    async with template.fork(network="all") as vm:
        told = (await vm.exec(["python3", "-c", ATTEMPTS], timeout_s=LIMIT_S, check=True)).stdout.splitlines()
        assert told[-1] == "interfaces lo"
        assert "went out" not in "".join(told)
        for url in ("http://10.0.2.2/", "http://169.254.169.254/latest/meta-data/", "http://[::ffff:a9fe:a9fe]/"):
            assert "name the address itself" in (await vm.exec(fetch(url), timeout_s=LIMIT_S)).stdout


# It asks for what it is told, and says what it got: a program that was started when its machine had another policy.
ASKER = """
import sys, urllib.request
print("ready", flush=True)
for url in sys.stdin:
    try:
        said = urllib.request.urlopen(url.strip(), timeout=60).read().decode()
    except Exception as error:
        said = str(error)
    print(said.strip(), flush=True)
"""


async def test_a_live_fork_has_the_policy_that_it_is_given_and_nothing_of_its_parents(template, names) -> None:
    names |= {"index.test": "127.0.0.1", "other.test": "127.0.0.1"}
    with serving({"/": b"here"}) as port:
        url = f"http://index.test:{port}/"
        parents = Allow(f"index.test:{port}", f"127.0.0.1:{port}")
        others = Allow(f"other.test:{port}", f"127.0.0.1:{port}")

        async def ask(program) -> str:
            said = program.output()
            await program.write_stdin(url.encode() + b"\n")
            return (await anext(said))[1].decode()

        async with template.fork(network=parents, env={"no_proxy": "mine"}) as vm:
            async with await vm.start(["python3", "-c", ASKER], stdin=True) as asker:
                assert (await anext(asker.output()))[1] == b"ready\n"
                (none,) = await vm.fork()
                (other,) = await vm.fork(network=others)
                (same,) = await vm.fork(network=parents)
                async with none, other, same:
                    # A program that runs on still asks at the proxy's port: nobody listens there, or the fork's own.
                    assert "refused" in await ask((await none.programs())[0])
                    assert "403" in await ask((await other.programs())[0])
                    assert await ask((await same.programs())[0]) == "here\n"
                    assert await ask(asker) == "here\n"
                    env = (await none.exec(["env"], check=True)).stdout
                    assert "127.0.0.1:3128" not in env
                    assert "no_proxy=mine" in env
                    assert b"index.test" not in await none.read_file("/etc/hosts")
                    assert b"index.test" not in await other.read_file("/etc/hosts")
                    assert "resolve" in (await none.exec(fetch(url), timeout_s=LIMIT_S)).stderr
                    assert "not in the list" in (await other.exec(fetch(url), timeout_s=LIMIT_S)).stdout
                    assert (await other.exec(fetch(url.replace("index", "other")), timeout_s=LIMIT_S)).stdout == "here"
                    assert (none.network, other.network, vm.network) == ("none", others, parents)
                    assert not any(each.host == "other.test" for each in vm.network_log)
            frozen = await vm.freeze("live-ways")
            try:
                async with await frozen.fork() as made:
                    assert "127.0.0.1:3128" not in (await made.exec(["env"], check=True)).stdout
                    assert b"index.test" not in await made.read_file("/etc/hosts")
            finally:
                await frozen.remove()


async def test_a_policy_changes_while_the_machine_runs(template, names) -> None:
    names |= {"index.test": "127.0.0.1"}
    with serving({"/": b"here"}) as port:
        policy = Allow(f"index.test:{port}", f"127.0.0.1:{port}")
        async with template.fork(env={"NAME": "value"}) as vm:
            url = fetch(f"http://index.test:{port}/")
            assert "resolve" in (await vm.exec(url, timeout_s=LIMIT_S)).stderr
            await vm.set_network(policy)
            assert (await vm.exec(url, timeout_s=LIMIT_S, check=True)).stdout == "here"
            assert (await vm.exec(url, env={"http_proxy": "http://127.0.0.1:9"}, timeout_s=LIMIT_S)).exit_code == 7
            await vm.set_network(Allow("other.test:5432"))
            assert "not in the list" in (await vm.exec(url, timeout_s=LIMIT_S)).stdout
            assert b"other.test" in await vm.read_file("/etc/hosts")
            with pytest.raises(ConfigError, match="no policy"):
                await vm.set_network("some")
            await vm.set_network("none")
            assert b"other.test" not in await vm.read_file("/etc/hosts")
            assert "proxy" not in (await vm.exec(["env"], check=True)).stdout.lower()
            assert [each.allowed for each in vm.network_log] == [True, False]
            await vm.set_network(policy)
            assert (await vm.exec(url, timeout_s=LIMIT_S, check=True)).stdout == "here"


async def test_a_port_that_is_taken_in_the_guest_is_said(template) -> None:
    async with template.fork() as vm, vm.reverse("127.0.0.1:1", 3128):
        with pytest.raises(PortError, match=r"3128.*somebody listens"):
            await vm.set_network("all")
        assert vm.network == "none"
    with pytest.raises(ConfigError, match="no policy"):
        await template.fork(network=["api.example.org"])


async def test_a_machine_of_a_pool_has_its_takers_policy_from_before_its_first_program(template, names) -> None:
    names |= {"index.test": "127.0.0.1"}
    with serving({"/": b"here"}) as port:
        config = FactoryConfig(template=True, template_name=template.name, cache=1)
        async with Factory(config) as factory:
            policy = Allow(f"index.test:{port}", f"127.0.0.1:{port}")
            async with factory.get_vm(network=policy, env={"ALL_PROXY": "mine"}) as vm:
                assert vm.source.kind == "pool"
                assert (await vm.exec(fetch(f"http://index.test:{port}/"), timeout_s=LIMIT_S)).stdout == "here"
                env = dict(line.split("=", 1) for line in (await vm.exec(["env"])).stdout.splitlines())
                assert (env["HTTPS_PROXY"], env["ALL_PROXY"]) == ("http://127.0.0.1:3128", "mine")
                assert env["NO_PROXY"].endswith(f",vm-{vm.id}")


async def test_of_a_machine_that_stands_alone_one_client_holds_the_policy(template, names) -> None:
    names |= {"index.test": "127.0.0.1"}
    with serving({"/": b"here"}) as port:
        url = fetch(f"http://index.test:{port}/")
        policy = Allow(f"index.test:{port}", f"127.0.0.1:{port}")
        vm = await template.start(name="ways", network=policy)
        try:
            assert (await vm.exec(url, timeout_s=LIMIT_S, check=True)).stdout == "here"
            async with VM.connect("ways") as other:
                assert (await other.exec(url, timeout_s=LIMIT_S, check=True)).stdout == "here"
                assert other.network == "none"
                with pytest.raises(StoreBusy, match="the network of VM"):
                    await other.set_network("all")
                await other.set_network("none")  # it holds none
                assert (await other.exec(url, timeout_s=LIMIT_S, check=True)).stdout == "here"
                await vm.aclose()
                assert (await other.exec(url, timeout_s=LIMIT_S)).exit_code == 7
                await other.set_network(policy)
                assert (await other.exec(url, timeout_s=LIMIT_S, check=True)).stdout == "here"
                # Who has given it up says nothing of it when he goes.
                async with VM.connect("ways") as third:
                    await other.set_network("none")
                    await third.set_network(policy)
                    await other.aclose()
                    await third.ping()
                    assert find_held(folder_of(find_places().vms, third.id)).allows == policy.entries
        finally:
            await end(await VM.connect("ways"))


def make_deb() -> bytes:
    """A package for apt that has nothing but a file."""

    def tar(name: str, content: bytes) -> bytes:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz", format=tarfile.GNU_FORMAT) as out:
            info = tarfile.TarInfo(f"./{name}")
            info.size, info.mode = len(content), 0o644
            out.addfile(info, io.BytesIO(content))
        return packed.getvalue()

    control = b"Package: demo-deb\nVersion: 1.0\nArchitecture: all\nMaintainer: a <a@a.test>\nDescription: a test\n"
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar.gz": tar("control", control),
        "data.tar.gz": tar("demo.txt", b"installed\n"),
    }
    ar = b"!<arch>\n"
    for name, content in parts.items():
        ar += (
            f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
            + content
            + b"\n" * (len(content) % 2)
        )
    return ar


def make_index() -> dict[str, bytes]:
    """The pages of a package index for apt and for pip, with a package each."""
    deb = make_deb()
    packages = b"Package: demo-deb\nVersion: 1.0\nArchitecture: all\nMaintainer: a <a@a.test>\nDescription: a test\n"
    packages += f"Filename: ./demo.deb\nSize: {len(deb)}\nSHA256: {hashlib.sha256(deb).hexdigest()}\n\n".encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as wheel:
        wheel.writestr("demo_wheel.py", "said = 'imported'\n")
        wheel.writestr("demo_wheel-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: demo-wheel\nVersion: 1.0\n")
        wheel.writestr(
            "demo_wheel-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("demo_wheel-1.0.dist-info/RECORD", "")
    file = "demo_wheel-1.0-py3-none-any.whl"
    return {
        "/deb/./Packages": packages, "/deb/Packages": packages, "/deb/./demo.deb": deb, "/deb/demo.deb": deb,
        "/simple/demo-wheel/": f'<a href="/{file}">{file}</a>'.encode(), f"/{file}": packed.getvalue(),
    }  # fmt: skip


@contextmanager
def template_with(instance, name: str, *packages: str) -> Iterator[Template]:
    """A template of an image that has these Debian packages too. In the end neither is left."""

    store = ImageStore(instance.images)
    image = asyncio.run(build_image(name, ImageConfig(packages=packages), store=store))
    try:
        config = VMConfig(image=name, memory_mib=ample_memory_mib(image))
        template = asyncio.run(Template.build(name, config))
        try:
            yield template
        finally:
            asyncio.run(template.remove())
    finally:
        store.remove(name)


@pytest.fixture(scope="module")
def installers(instance):
    with template_with(instance, "installers", "apt", "python3-pip") as template:
        yield template


@pytest.fixture(scope="module")
def developers(instance):
    with template_with(instance, "developers", "git", "npm") as template:
        yield template


@pytest.mark.slow
@pytest.mark.limit_s(600)
@pytest.mark.needs("mmdebstrap")
async def test_images_with_what_installs_boot_in_exactly_their_least_memory(installers, developers, instance) -> None:
    for template in installers, developers:
        await boots_in_its_least(template.manifest.image, instance)


@pytest.mark.slow
@pytest.mark.needs("mmdebstrap")
async def test_apt_and_pip_install_from_an_index_that_is_named(installers, names) -> None:
    names |= {"index.test": "127.0.0.1"}
    with serving(make_index()) as port:
        async with installers.fork(network=Allow(f"index.test:{port}", f"127.0.0.1:{port}")) as vm:
            source = f"deb [trusted=yes] http://index.test:{port}/deb ./\n"
            await vm.shell("rm -rf /etc/apt/sources.list.d/* /etc/apt/sources.list", check=True)
            await vm.write_file("/etc/apt/sources.list", source, parents=True)
            await vm.exec(["apt-get", "update"], timeout_s=LIMIT_S, check=True)
            await vm.exec(["apt-get", "install", "-y", "demo-deb"], timeout_s=LIMIT_S, check=True)
            assert await vm.read_file("/demo.txt") == b"installed\n"
            pip = ["pip", "install", "--break-system-packages", "--disable-pip-version-check", "--no-cache-dir"]
            index = ["--index-url", f"http://index.test:{port}/simple", "--trusted-host", "index.test", "demo-wheel"]
            await vm.exec([*pip, *index], timeout_s=LIMIT_S, check=True)
            said = await vm.exec(["python3", "-c", "import demo_wheel; print(demo_wheel.said)"], check=True)
            assert said.stdout == "imported\n"
            assert all(each.allowed for each in vm.network_log)


def make_registry(port: int) -> dict[str, bytes]:
    """The pages of a registry for npm, with a package."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as out:
        files = {"package.json": b'{"name": "demo-npm", "version": "1.0.0"}', "index.js": b'exports.said = "required"'}
        for name, content in files.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    tarball = f"http://index.test:{port}/demo-npm-1.0.0.tgz"
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(packed.getvalue()).digest()).decode()
    version = {"name": "demo-npm", "version": "1.0.0", "dist": {"tarball": tarball, "integrity": integrity}}
    about = {"name": "demo-npm", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
    return {"/demo-npm": json.dumps(about).encode(), "/demo-npm-1.0.0.tgz": packed.getvalue()}


# A repository that any web server can serve.
MAKE_REPOSITORY = """
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@a.test GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@a.test
git init -q -b main /root/made && cd /root/made && echo cloned > said && git add said && git commit -q -m first
git clone -q --bare /root/made /root/repo.git && cd /root/repo.git && git update-server-info
"""


@pytest.mark.slow
@pytest.mark.limit_s(900)
@pytest.mark.needs("mmdebstrap")
async def test_git_and_npm_fetch_from_a_host_that_is_named_and_from_no_other(developers, names, tmp_path) -> None:
    names |= {"index.test": "127.0.0.1", "evil.test": "127.0.0.1"}
    pages: dict[str, bytes] = {}
    with serving(pages) as port:
        pages |= make_registry(port)
        async with developers.fork(network=Allow(f"index.test:{port}", f"127.0.0.1:{port}")) as vm:
            await vm.shell(MAKE_REPOSITORY, check=True, timeout_s=LIMIT_S)
            await vm.get("/root/repo.git", tmp_path / "repo.git")
            for file in tmp_path.rglob("*"):
                if file.is_file():
                    pages[f"/{file.relative_to(tmp_path)}"] = file.read_bytes()
            clone = ["git", "clone", "-q", f"http://index.test:{port}/repo.git", "/root/cloned"]
            await vm.exec(clone, timeout_s=LIMIT_S, check=True)
            assert await vm.read_file("/root/cloned/said") == b"cloned\n"
            npm = ["npm", "install", "--prefix", "/root/js", "--no-audit", "--no-fund", "demo-npm", "--registry"]
            await vm.exec([*npm, f"http://index.test:{port}/"], timeout_s=LIMIT_S * 3, check=True)
            said = await vm.exec(["node", "-e", "console.log(require('/root/js/node_modules/demo-npm').said)"])
            assert said.check().stdout == "required\n"
            assert all(each.allowed for each in vm.network_log)
            refused = await vm.exec(["git", "ls-remote", f"http://evil.test:{port}/repo.git"], timeout_s=LIMIT_S)
            assert (refused.exit_code != 0, vm.network_log[-1].host, vm.network_log[-1].allowed) == (
                True, "evil.test", False,
            )  # fmt: skip


def test_a_command_reaches_what_it_is_allowed_and_says_what_it_would_need(template_name) -> None:
    reach = ["curl", "-sS", "http://evil.test/"]
    told = command("run", "-t", template_name, "--allow", "*.example.org", "--json", "--", *reach)
    document = json.loads(told.out)
    assert document["stdout"] == "vmfork: evil.test is not in the list\n"
    assert [(each["host"], each["port"], each["allowed"]) for each in document["network"]] == [("evil.test", 80, False)]
    told = command("run", "-t", template_name, "--network-log-only", "--", *reach, "http://10.0.0.1:8080/")
    assert told.err.splitlines()[-2:] == ["network --allow evil.test", "network denied 10.0.0.1:8080"]
    for wrong in (["--allow", "*.com"], ["--network", "some"], ["--network", "none", "--allow", "a.test"]):
        refused = command("run", *wrong, "true")
        assert (refused.status, "error: network: " in refused.err, "hint: " in refused.err) == (125, True, True)


def test_a_machine_that_is_left_running_keeps_its_policy_and_another_can_be_held_for_it(template_name) -> None:
    vm_id = command("start", "-t", template_name, "--name", "ways-cli", "--allow", "*.example.org").check().out.strip()
    try:
        shown = json.loads(command("network", "ways-cli", "--json").check().out)
        assert (shown["id"], shown["allows"]) == (vm_id, ["*.example.org"])
        fetched = command("exec", "ways-cli", "--", "curl", "-sS", "http://evil.test/")
        assert fetched.out == "vmfork: evil.test is not in the list\n"
        assert "in use by process" in command("network", "ways-cli", "--network", "all").err
    finally:
        command("stop", "ways-cli", "--grace", "0").check()
    command("start", "-t", template_name, "--name", "ways-cli").check()
    try:
        with Running("network", "ways-cli", "--allow", "*.example.org") as holding:
            holding.wait_for("reaches *.example.org\n", fd=1)
            command("exec", "ways-cli", "--", "curl", "-sS", "http://evil.test/").check()
            holding.wait_for("evil.test:80 denied: evil.test is not in the list\n", fd=1)
            holding.interrupt(signal.SIGINT)
            assert holding.end().status == 130
        assert command("network", "ways-cli").check().out == "none, or what its owner holds\n"
    finally:
        command("stop", "ways-cli", "--grace", "0").check()


async def test_steps_of_a_build_have_a_way_out_of_their_own_and_hooks_that_of_their_fork(instance, names) -> None:
    names |= {"index.test": "127.0.0.1"}
    hook = "/etc/vmfork/after-fork.d/10-fetch"
    script = '#!/bin/sh\\n[ -z "$URL" ] || curl -sf $URL > /root/hooked\\n'
    write = f"mkdir -p $(dirname {hook}); printf '{script}' > {hook}; chmod +x {hook}"
    with serving({"/": b"here"}) as port:
        policy, url = Allow(f"index.test:{port}", f"127.0.0.1:{port}"), f"http://index.test:{port}/"
        steps = [
            {"run": f"curl -sSf {url} > /root/first", "network": [*policy.entries]},
            {"run": f"for way in '' '-x http://127.0.0.1:3128'; do curl -s $way {url}; echo $? >> /root/then; done"},
        ]
        warm_up = [write, f"curl -sSf {url} > /root/got"]
        built = await Template.build("ways-built", steps=steps, warm_up=warm_up, network=policy)
        try:
            async with built.fork() as vm:
                assert await vm.read_file("/root/got") == b"here"
                # What one step may reach the next may not: no name and no proxy leads there.
                assert await vm.read_file("/root/first") == b"here"
                assert await vm.read_file("/root/then") == b"6\n7\n"
                assert b"index.test" not in await vm.read_file("/etc/hosts")
                assert "proxy" not in (await vm.exec(["env"], check=True)).stdout.lower()
                assert (await vm.exec(fetch(url), timeout_s=LIMIT_S)).exit_code == 6
                with pytest.raises(PortError, match="nothing listens"):
                    await vm.open_connection(3128)
            async with built.fork(network=policy, env={"URL": url}, timeout_s=LIMIT_S) as vm:
                assert await vm.read_file("/root/hooked") == b"here"
            # By its address, and the proxy: a command looks names up on a host that knows none of ours.
            given = ("--allow", f"127.0.0.1:{port}", "-e", f"URL=http://127.0.0.1:{port}/", "-e", "NO_PROXY=")
            started = await asyncio.to_thread(command, "start", "-t", "ways-built", "--ttl", "10m", *given)
            async with VM.connect(started.check().out.strip()) as vm:
                assert await vm.read_file("/root/hooked") == b"here"
                await vm.stop(grace_s=0)
        finally:
            await built.remove()

"""A recipe of every word, done in real machines; what fails is named, and nothing of a step outlives it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.vm.cli_runner import left_of, vmfork
from tests.wheels import make_wheel
from vmfork.aio import Recipe, Template
from vmfork.errors import ConfigError, DeadlineExceeded, ExecError, GuestError
from vmfork.image import ImageStore
from vmfork.recipe.context import Context
from vmfork.recipe.pins import digest_copied
from vmfork.recipe.step import Copy
from vmfork.recipe.surroundings import Surroundings
from vmfork.recipe.words import WORDS, read_steps
from vmfork.recipe.work import Work
from vmfork.store import TemplateStore
from vmfork.store.layers import LayerStore
from vmfork.template.removal import remove_template

pytestmark = pytest.mark.vm

PACKAGE = "hello"
SERVER = """
import http.server, greet
print("greeting", greet.VERSION, flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", 8000), http.server.SimpleHTTPRequestHandler).serve_forever()
"""
RECIPE = """
[template.stepped]
memory = "320M"
steps = [
  {pip = ["requirements.txt", "local-1.0-py3-none-any.whl"]}, {pip = "pinned.lock"},
  {copy = ["app/", "/srv/app"]}, {copy = ["note", "limits.txt", "/srv"]},
  {hooks = {before_freeze = "hooks/forget", after_fork = ["hooks/key"]}},
  {env = {APP = "one"}}, {run = "adduser --help >/dev/null 2>&1; echo web:x:1000:1000::/:/bin/sh >> /etc/passwd"},
  {run = "cat /run/token > /srv/seen; stat -c %a:%U /run/token >> /srv/seen", secret_files = {"/run/token" = "token"}},
  {run = "echo ${#TOKEN} > /srv/told", secrets = ["TOKEN"]}, {run = "echo x$TOKEN >> /srv/told"},
  {run = "env | grep -c http_proxy= > /srv/reach", network = ["api.example.org"]},
  {run = "env | grep -c http_proxy= >> /srv/reach; true"},
  {workdir = "/srv/work"}, {run = "pwd > /srv/where; echo $APP >> /srv/where"}, {run = "chown web /srv/work"},
  {user = "web"}, {run = "id -un > who"}, {ready = {file = "/srv/work/who"}},
  {start = "echo begun; exec sleep 1000"}, {ready = {log = "^begun$", timeout = "60s"}}, {ready = "pgrep -x sleep"},
]
start = "exec python3 /srv/app/main.py"
ready = {port = 8000, timeout = "60s"}
"""


@pytest.fixture(autouse=True)
async def nothing_is_left(instance):
    yield
    for name in await Template.list():
        if name.startswith("stepped"):
            await remove_template(name, places=instance)
    await LayerStore(instance.layers).remove_all()
    store = ImageStore(instance.images)
    for name in store.list_names():
        if name.startswith(f"default.with-{PACKAGE}"):
            store.remove(name)
    assert left_of(instance.runtime) == []


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A recipe's folder, and a place of wheels that this user's pip is told of."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    make_wheel(wheels, "greet", "1.0", needs=("base",), scripts="greet = greet:main")
    make_wheel(wheels, "greet", "2.0", needs=("base",))
    make_wheel(wheels, "base")
    make_wheel(wheels, "older", tag="cp39-cp39-manylinux1_x86_64")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("TOKEN", "s3cret")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    folder = tmp_path / "recipe"
    (folder / "app").mkdir(parents=True)
    (folder / "app" / "main.py").write_text(SERVER)
    (folder / "app" / "run.sh").write_text("#!/bin/sh\n")
    (folder / "app" / "run.sh").chmod(0o750)
    (folder / "app" / "cache.pyc").write_text("x")
    (folder / "hooks").mkdir()
    (folder / "hooks" / "forget").write_text("#!/bin/sh\necho forgotten >> /srv/forgotten\n")
    (folder / "hooks" / "key").write_text('#!/bin/sh\necho "$VMFORK_FORK_ID of $VMFORK_TEMPLATE" >> /run/keyed\n')
    (folder / ".vmforkignore").write_text("*.pyc\n")
    (folder / "note").write_text("noted")
    (folder / "requirements.txt").write_text("greet\n-c limits.txt\n")
    (folder / "limits.txt").write_text("greet<2\n")
    make_wheel(folder, "local")
    pinned = make_wheel(wheels, "pinned", "1.0")
    digest = hashlib.sha256(pinned.read_bytes()).hexdigest()
    (folder / "pinned.lock").write_text(f"pinned==1.0 --hash=sha256:{digest}\n")
    (folder / "token").write_text("s3cret\n")
    (folder / "vmfork.toml").write_text(RECIPE)
    return folder


@pytest.mark.parametrize(
    "packages",
    [
        pytest.param((), id="without-packages"),
        pytest.param((PACKAGE,), id="with-packages", marks=[pytest.mark.slow, pytest.mark.needs("mmdebstrap")]),
    ],
)
async def test_a_recipe_of_every_word_is_done_in_order_and_its_server_runs_in_the_forks(
    folder, instance, template_name, packages
) -> None:
    if packages:  # an image of its own, for which there is no time in every run
        word = f'steps = [{{packages = ["{PACKAGE}"]}}, {{run = "{PACKAGE} > /srv/packed"}},'
        (folder / "vmfork.toml").write_text(RECIPE.replace("steps = [", word, 1))
    limit_s = 600 if packages else 170
    told = vmfork("template", "build", "-f", str(folder / "vmfork.toml"), "--json", limit_s=limit_s).check()
    manifest = json.loads(told.out)
    assert (manifest["name"], manifest["memory_mib"]) == ("stepped", 320)
    words = [step["step"].partition(" ")[0] for step in manifest["steps"]]
    assert words[2 if packages else 0 :] == [
        "pip", "pip", "copy", "copy", "hooks", "env", "run", "run", "run", "run", "run", "run", "workdir", "run", "run",
        "user", "run", "ready", "start", "ready", "ready", "start", "ready",
    ]  # fmt: skip
    assert not packages or set(words) == set(WORDS)
    assert "s3cret" not in told.out + (instance.recipes / "stepped.json").read_text()
    template = await Template.open("stepped")
    async with await template.fork() as vm:

        async def read(path: str) -> str:
            return (await vm.read_file(path)).decode()

        if packages:
            assert await read("/srv/packed") == "Hello, world!\n"
        assert await read("/srv/seen") == "s3cret\n600:root\n"
        assert not await vm.exists("/run/token")
        # One hook has run before the freeze, the other in this fork alone.
        assert await read("/srv/forgotten") == "forgotten\n"
        assert await read("/run/keyed") == f"{vm.id} of stepped\n"
        assert await read("/srv/told") == "6\nx\n"
        assert await read("/srv/where") == "/srv/work\none\n"
        assert await read("/srv/work/who") == "web\n"
        assert [entry.name for entry in await vm.list_dir("/srv/app")] == ["main.py", "run.sh"]
        assert (await vm.stat("/srv/app/run.sh")).mode & 0o777 == 0o750
        assert (await read("/srv/note"), await read("/srv/limits.txt")) == ("noted", "greet<2\n")
        assert (
            await vm.shell("greet; python3 -c 'import local, pinned; local.main(); pinned.main()'", check=True)
        ).stdout == ("greet 1.0\nlocal 1.0\npinned 1.0\n")
        # What a step may reach is told to its own programs alone.
        assert await read("/srv/reach") == "1\n0\n"
        assert not await vm.exists("/run/vmfork-wheels")
        page = (await vm.shell("curl -s http://127.0.0.1:8000/ | head -c 15", check=True)).stdout
        assert page.startswith("<!DOCTYPE")
        logs = [await read(f"/run/vmfork-start/{number}/log") for number in (1, 2)]
        assert (logs[0], logs[1].partition("\n")[0]) == ("begun\n", "greeting 1.0")
        assert (await vm.shell("ps -o user= -C python3", check=True)).stdout.strip() == "web"
    # Known by what it was made of: the same recipe is the same template, and another file another.
    same = await Template.ensure("stepped", recipe=folder / "vmfork.toml")
    assert same.generation == template.generation
    (folder / "note").write_text("noted anew")
    other = await Template.ensure("stepped", recipe=folder / "vmfork.toml")
    assert other.generation != template.generation
    async with await other.fork() as vm:
        assert await vm.read_file("/srv/note") == b"noted anew"


@pytest.mark.slow
async def test_the_short_way_says_the_same_and_a_template_that_is_gone_is_made_again(folder, instance) -> None:
    template = await Template.build(
        "stepped",
        files={"/srv/note": "note", "/srv/app": folder / "app"},
        pip=["greet"],
        steps=[{"pip": "pinned.lock"}, {"run": "greet > /srv/said || echo none > /srv/said"}],
        folder=folder,
        warm_up=["cp /srv/said /srv/copied"],
        ready="test -e /srv/copied",
    )
    assert [step.step.partition(" ")[0] for step in template.manifest.steps] == [
        "copy", "copy", "pip", "pip", "run", "run", "ready",
    ]  # fmt: skip
    await TemplateStore(instance.templates).remove("stepped")  # as a reboot does
    again = await Template.ensure("stepped")
    async with await again.fork() as vm:
        assert await vm.read_file("/srv/copied") == b"none\n"  # the newest has no such script
        said = await vm.shell("python3 -c 'import greet, pinned; greet.main(); pinned.main()'", check=True)
        assert said.stdout == "greet 2.0\npinned 1.0\n"
        assert await vm.exists("/srv/app/main.py")


@pytest.mark.slow
async def test_the_command_has_the_short_way_too(folder, instance) -> None:
    asked = ("--pip", "greet", "--copy", "note:/srv/note", "--copy", "app:/srv/app")
    then = ("--run", "cp /srv/note /srv/copied", "--ready", "test -e /srv/copied")
    told = vmfork("template", "build", "stepped", *asked, *then, "--json", cwd=folder).check()
    assert [step["step"].partition(" ")[0] for step in json.loads(told.out)["steps"]] == [
        "copy", "copy", "pip", "run", "ready",
    ]  # fmt: skip
    async with await (await Template.open("stepped")).fork() as vm:
        assert await vm.read_file("/srv/copied") == b"noted"
        assert await vm.exists("/srv/app/main.py")
        assert (await vm.shell("python3 -c 'import greet'")).ok


@pytest.mark.parametrize(
    ("steps", "kind", "told"),
    [
        ([{"run": "true"}, {"run": "echo out; echo why >&2; exit 3"}], ExecError, "standard error:\nwhy"),
        ([{"pip": "none-such"}], ConfigError, "no wheel of none-such is for Python 3.13"),
        ([{"pip": "older"}], ConfigError, "no wheel of older is for Python 3.13"),
        ([{"user": "nobody-such"}, {"run": "true"}], GuestError, "no user 'nobody-such'"),
        ([{"ready": {"file": "/none", "timeout": 0.3}}], DeadlineExceeded, "'/none' to be there took longer"),
        ([{"ready": {"port": 81, "timeout": 0.3}}], DeadlineExceeded, "port 81 to be listened on took longer"),
        ([{"ready": {"log": "x"}}], ConfigError, "nothing was started"),
        (
            [{"start": "echo broken; exit 1"}, {"ready": {"port": 81, "timeout": 60}}],
            GuestError,
            "has ended: it wrote:\nbroken",
        ),
        (
            [{"start": "echo hello; sleep 60"}, {"ready": {"log": "bye", "timeout": 1}}],
            DeadlineExceeded,
            "the started program's output:\nhello",
        ),
        (
            [{"ready": {"command": "echo almost; false", "timeout": 3}}],
            DeadlineExceeded,
            "its last standard output:\nalmost",
        ),
        ([{"run": "sleep 60", "timeout": 0.5}], DeadlineExceeded, "took longer than 0.5 s"),
        ([{"run": "true", "secrets": ["NONE_SUCH"]}], ConfigError, "NONE_SUCH is not set here"),
        ([{"run": "true", "secret_files": {"/run/t": "none"}}], ConfigError, "secret_files: cannot read"),
        ([{"run": "true", "secret_files": {"/etc/passwd": "token"}}], ConfigError, "has a file /etc/passwd already"),
    ],
)
async def test_a_step_that_fails_says_why(folder, fork, steps, kind, told) -> None:
    work = Work(fork._running, Context.of(folder), Surroundings())
    with pytest.raises(kind) as caught:
        for step in read_steps(steps):
            await work.do(step)
    assert told in f"{caught.value}: {caught.value.hint}\n{caught.value.details()}"
    assert not await fork.exists("/run/t")
    assert await fork.exists("/etc/passwd")


async def test_a_line_is_found_however_far_down_in_the_log_it_is(folder, fork) -> None:
    """Behind more than one piece that it is read by; a second look finds what the first one has."""
    line = "yes waiting for it | head -c 3000000; echo listening on 80; exec sleep 1000"
    work = Work(fork._running, Context.of(folder), Surroundings())
    ready = {"ready": {"log": "^listening on", "timeout": 60}}
    for step in read_steps([{"start": line}, ready, ready]):
        await work.do(step)
    (never,) = read_steps([{"ready": {"log": "^istening", "timeout": 0.5}}])
    with pytest.raises(DeadlineExceeded) as caught:
        await work.do(never)
    assert caught.value.details().endswith("waiting for it\nlistening on 80")


async def test_what_is_copied_and_changes_meanwhile_fails_the_step(folder, fork, monkeypatch) -> None:
    taken, real = [], digest_copied

    def digest(step, context):
        taken.append(found := real(step, context))
        (folder / "note").write_text("changed")
        return found

    monkeypatch.setattr("vmfork.recipe.work.digest_copied", digest)
    with pytest.raises(ConfigError, match="it changed while it was copied"):
        await Work(fork._running, Context.of(folder), Surroundings()).do(Copy(sources=("note",), target="/srv/note"))
    assert len(taken) == 2


@pytest.mark.kvm
async def test_secret_files_are_gone_after_a_step_that_fails_too(folder, fork) -> None:
    (step,) = read_steps([{"run": "cat /run/deep/t; exit 1", "secret_files": {"/run/deep/t": "token"}}])
    with pytest.raises(ExecError) as caught:
        await Work(fork._running, Context.of(folder), Surroundings()).do(step)
    assert caught.value.stdout == b"s3cret\n"
    assert not await fork.exists("/run/deep/t")


@pytest.mark.slow
def test_a_build_that_is_killed_leaves_nothing_of_its_step(folder, instance) -> None:
    """pip runs meanwhile: a stand-in that never ends, which tells that it was started."""
    begun = folder / "begun"
    fake = folder / "pip.py"
    fake.write_text(f"import os, time; open({str(begun)!r}, 'w').write(str(os.getpid())); time.sleep(600)")
    script = (
        "import vmfork, sys\nfrom vmfork.recipe import wheels\n"
        f"wheels.find_pip = lambda: [sys.executable, {str(fake)!r}]\n"
        f"vmfork.Template.build('stepped', pip=['greet'], folder={str(folder)!r})\n"
    )
    builder = subprocess.Popen([sys.executable, "-c", script])
    try:
        end = time.monotonic() + 120
        while not (begun.exists() and begun.read_text()):
            assert builder.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        pip = int(begun.read_text())
        builder.send_signal(signal.SIGKILL)
        builder.wait()
        while os.path.exists(f"/proc/{pip}"):
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        builder.kill()
        builder.wait()
    while left_of(instance.runtime):  # its emulator ends a moment after it, and then the next command sweeps
        assert time.monotonic() < end
        vmfork("gc", "--layers").check()


async def test_a_recipe_is_a_value_that_says_all_of_how_and_a_step_that_fails_is_named(folder) -> None:
    recipe = Recipe(steps=[{"run": "echo made"}, {"run": "echo out; exit 3"}], vm={"memory_mib": 288}, folder=folder)
    with pytest.raises(ExecError) as caught:
        await Template.build("stepped", recipe=recipe)
    assert str(caught.value).startswith("step 2 of 2, run echo out; exit 3: /bin/sh -c")
    assert (caught.value.exit_code, caught.value.stdout) == (3, b"out\n")
    assert "stepped" not in await Template.list()
    with pytest.raises(ConfigError, match="says all of how"):
        await Template.build("stepped", recipe=recipe, warm_up=["true"])

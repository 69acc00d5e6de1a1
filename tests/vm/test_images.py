"""Container images run as forks, and recipes begin from them: of one program alone, of busybox, of musl, of Debian."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import struct
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest

from tests.images import (
    LayoutWriter,
    Member,
    box_members,
    folder,
    hard,
    link,
    make_by_umoci,
    make_layer,
    put_image,
    save_archive,
    write_image,
)
from tests.registry import running_registry
from tests.rules.capabilities import find_glibc, find_musl, find_program, find_static_busybox, need
from tests.vm.cli_runner import vmfork
from tests.vm.least import boots_in_its_least
from tests.wheels import make_wheel
from vmfork import blocking
from vmfork.aio import Image, Template, VMConfig
from vmfork.config import ImageConfig
from vmfork.errors import ExecError
from vmfork.image.recipe import find_agent

pytestmark = pytest.mark.vm

# An x86_64 program that waits for a signal for ever: pause(2), and again.
_CODE = b"\xb8\x22\x00\x00\x00\x0f\x05\xeb\xf7"
_SIZE = 64 + 56 + len(_CODE)
_WAITS = (
    b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0x400078, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    + struct.pack("<IIQQQQQQ", 1, 5, 0, 0x400000, 0x400000, _SIZE, _SIZE, 0x1000)
    + _CODE
)
_CAPABILITY = b"\x01\x00\x00\x02\x00\x04\x00\x00" + bytes(12)


@pytest.fixture(params=["memory", pytest.param("disk", marks=pytest.mark.needs("sqfstar"))])
async def imported(request, tmp_path):
    """A template of an image of two layers: a static program, no shell, no libc, no passwd; its root in each place."""
    program = find_agent().read_bytes()
    layout = write_image(
        tmp_path / "layout",
        [
            [
                Member("app/agent", body=program, mode=0o755, uid=7),
                folder("data", 0o700, uid=1234, gid=77),
                Member("data/gone"),
                Member("init", body=b"mine", mode=0o600),
                Member("data/null", "char", device=(1, 3), mode=0o666),
            ],
            [
                Member("data/.wh.gone"),
                hard("app/again", "app/agent"),
                Member("app/wait", body=_WAITS, mode=0o755),
                link("bin", "app"),
                Member("app/bound", body=_WAITS, mode=0o755, xattrs=(("security.capability", _CAPABILITY),)),
            ],
        ],
        config={
            "Env": ["PATH=/app", "GREETING=hello there"],
            "WorkingDir": "/data",
            "User": "1234:77",
            "Entrypoint": ["again"],
            "Cmd": ["--version"],
        },
    )
    name = f"oci-{os.getpid()}"
    image = await Image.import_oci(f"oci:{layout}", name, root=request.param)
    template = await Template.build(name, VMConfig(image=name))
    assert ("image.disk" in template.manifest.traits) == (request.param == "disk")
    yield image, template
    await template.remove()
    await image.remove()


@pytest.mark.slow
async def test_an_image_of_one_static_program_runs_as_a_fork(imported):
    image, template = imported
    assert (image.argv, image.user, image.working_dir) == (("again", "--version"), "1234:77", "/data")
    async with await template.fork() as vm:
        done = await vm.exec(["again", "--version"])
        assert done.exit_code == 0
        assert done.stdout.startswith("vmfork-agent")
        process = await vm.start(["wait"])
        async with process:
            told = await vm.read_file(f"/proc/{process.pid}/status")
            environ = await vm.read_file(f"/proc/{process.pid}/environ")
        assert b"Uid:\t1234\t1234" in told
        assert b"Gid:\t77\t77" in told
        assert b"GREETING=hello there\0" in environ
        assert b"CapEff:\t0000000000000000" in told
        async with await vm.start(["bound"]) as process:  # what the attribute of its file says, wherever that lies
            told = await vm.read_file(f"/proc/{process.pid}/status")
        assert b"CapEff:\t%016x" % (1 << 10) in told
        with pytest.raises(ExecError):
            await vm.shell("true")
        assert await vm.image_argv() == ("again", "--version")
        assert await vm.read_file("/init") == b"mine"
        names = {entry.name for entry in await vm.list_dir("/data")}
        assert names == {"null"}
        found = await vm.stat("/data")
        assert (found.uid, found.gid, stat.S_IMODE(found.mode)) == (1234, 77, 0o700)


@pytest.mark.slow
@pytest.mark.limit_s(600)
async def test_it_boots_in_exactly_its_least_memory(imported, instance):
    await boots_in_its_least(imported[0].name, instance)


BOXED = """
[template.boxed]
from = "oci:in:latest"
steps = [
  {copy = ["note", "/data/note"]},
  {run = "echo $(id -un) in $PWD: $GREETING > told; cat /run/token >> told", secret_files = {"/run/token" = "note"}},
]
start = "id -un; exec sleep 1000"
ready = {log = "^app$"}
"""


@pytest.fixture
async def boxed(tmp_path):
    """A folder with a recipe that begins from an image like busybox, whose programs are a user's.

    Of all that is made meanwhile nothing is left.
    """
    busybox = find_static_busybox()
    assert busybox is not None
    templates, images = {*await Template.list()}, {*await Image.list()}
    box = [
        *box_members(busybox, "app:x:1000:1000::/data:/bin/sh"),
        folder("data", 0o755, uid=1000, gid=1000),
        Member("dev/full", "char", mode=0o666, device=(1, 7)),
        Member(
            "bin/busybox-bound", body=busybox.read_bytes(), mode=0o755, xattrs=(("security.capability", _CAPABILITY),)
        ),
    ]
    config = {
        "Env": ["PATH=/bin", "GREETING=hello"],
        "WorkingDir": "/data",
        "User": "app",
        "Entrypoint": ["/bin/echo", "said"],
        "Cmd": ["by", "the image"],
    }
    layout = LayoutWriter(tmp_path / "in")
    layout.add_image([make_layer(box)], config=config)
    save_archive(tmp_path / "saved.tar", [box])
    (tmp_path / "note").write_text("noted")
    (tmp_path / "vmfork.toml").write_text(BOXED)
    yield layout
    for name in {*await Template.list()} - templates:
        await (await Template.open(name)).remove()
    for name in {*await Image.list()} - images - {"default"}:
        await (await Image.open(name)).remove(force=True)


@pytest.mark.needs("busybox")
async def test_a_recipe_begins_from_an_image_whose_command_its_forks_run(boxed):
    recipe = str(boxed.path.parent / "vmfork.toml")
    built = json.loads(vmfork("template", "build", "-f", recipe, "--json").check().out)
    assert built["image"].startswith("in.from-")
    assert vmfork("run", "-t", "boxed").check().out == "said by the image\n"
    assert vmfork("run", "-t", "boxed", "--entrypoint", "--", "hello").check().out == "said hello\n"
    template = await Template.ensure("boxed", recipe=recipe)
    assert template.generation == built["generation"]  # the image is as it was, and so nothing was built
    async with await template.fork() as vm:
        assert await vm.read_file("/data/told") == b"app in /data: hello\nnoted"
        assert (await vm.exec(await vm.image_argv(["sh"]))).stdout == "said sh\n"
        assert (await vm.exec(["cat", "note"])).stdout == "noted"
        status = (await vm.exec(["busybox-bound", "cat", "/proc/self/status"])).stdout
        assert f"CapEff:\t{1 << 10:016x}" in status  # a user's, which has what the attribute of its file says
        assert (await vm.exec(["stat", "-c", "%F %t,%T", "/dev/full"])).stdout == "character special file 1,7\n"


@pytest.mark.needs("busybox", "docker-registry", "oras")
async def test_the_command_line_has_it_from_everywhere_and_runs_it(boxed, tmp_path):
    def run(*argv: str) -> str:
        return vmfork(*argv, cwd=tmp_path).check().out

    with running_registry(tmp_path / "registry") as registry:
        ref = f"{registry.host}/team/box:1"
        put_image(boxed, ref)
        sources = {"by-registry": ref, "by-layout": "oci:in:latest", "by-archive": "docker-archive:saved.tar:1"}
        made = {name: json.loads(run("image", "import", at, name, "--json")) for name, at in sources.items()}
        assert run("image", "import", ref, "plainly", "--plain-http").startswith("image plainly: ")
    assert made["by-registry"]["digest"] == made["by-layout"]["digest"] != made["by-archive"]["digest"]
    assert run("run", "--image", "by-registry") == "said by the image\n"
    assert run("template", "build", "from", "--from", "oci:in:latest").startswith("template from")
    assert run("run", "-t", "from") == "said by the image\n"
    # By a name of its own in the file of the project, and in Python.
    (tmp_path / "vmfork.toml").write_text('[image.app]\nfrom = "oci:in:latest"\n')
    assert run("image", "build", "app").startswith("image app: ")
    config = ImageConfig(source=f"oci:{tmp_path / 'in'}:latest")
    app = await Image.build("app", config)
    again = await asyncio.to_thread(blocking.Image.build, "again", config)
    digests = {each["name"]: each["digest"] for each in json.loads(run("image", "ls", "--json"))}
    assert {app.digest, again.digest, digests["app"]} == {made["by-layout"]["digest"]}


_WORKS = r"""
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(void)
{
    char **lines = NULL, *line = NULL;
    size_t count = 0, room = 0;
    while (getline(&line, &room, stdin) > 0) {
        lines = realloc(lines, ++count * sizeof *lines);
        lines[count - 1] = strdup(line);
    }
    printf("%s %zu %s", getpwuid(getuid())->pw_name, count, lines[count - 1]);
}
"""


@pytest.mark.slow
@pytest.mark.needs("busybox", "musl", "umoci", "wheels")
async def test_an_image_of_musl_like_alpine_does_its_work(tmp_path):
    """Its program is linked to musl's library; the image is one that umoci made."""
    busybox, musl, umoci = find_static_busybox(), find_musl(), find_program("umoci")
    assert busybox is not None
    assert musl is not None
    assert umoci is not None
    (tmp_path / "works.c").write_text(_WORKS)
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-musl", "-dynamic", "-O2"]
    subprocess.run([*zig, "-o", str(tmp_path / "works"), str(tmp_path / "works.c")], check=True, capture_output=True)
    program = (tmp_path / "works").read_bytes()
    assert b"/lib/ld-musl-x86_64.so.1" in program
    base = [
        *box_members(busybox, "app:x:1000:1000::/:/bin/sh"),
        folder("lib"),
        Member("lib/ld-musl-x86_64.so.1", body=musl.read_bytes(), mode=0o755),
    ]
    layers = [tmp_path / "base.tar", tmp_path / "app.tar"]
    layers[0].write_bytes(make_layer(base))
    layers[1].write_bytes(make_layer([folder("usr/bin"), Member("usr/bin/works", body=program, mode=0o755)]))
    config = ["--config.env", "PATH=/usr/bin:/bin", "--config.user", "app", "--config.entrypoint", "works"]
    make_by_umoci(umoci, tmp_path / "alpine", layers, config)
    template = await Template.build(
        "alpine", from_=f"oci:{tmp_path / 'alpine'}:latest", warm_up=["test -x /usr/bin/works"]
    )
    try:
        async with await template.fork() as vm:
            argv = await vm.image_argv()
            done = await vm.exec(argv, input="b\na\nlast\n", check=True)
            assert done.stdout == "app 3 last\n"
            assert (await vm.shell("echo b a | wc -w", check=True)).stdout == "2\n"
    finally:
        await template.remove()
        await (await Image.open(template.manifest.image)).remove()


@pytest.mark.slow
@pytest.mark.limit_s(600)
@pytest.mark.needs("glibc", "wheels")
async def test_an_image_of_glibc_without_a_shell_does_its_work(tmp_path):
    """As distroless images are: a program that is linked to glibc, that, a user, and nothing else."""
    found = find_glibc()
    assert found is not None
    (tmp_path / "works.c").write_text(_WORKS)
    # As old as any that is in use: it runs with the one of this host.
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-gnu.2.28", "-O2"]
    subprocess.run([*zig, "-o", str(tmp_path / "works"), str(tmp_path / "works.c")], check=True, capture_output=True)
    program = (tmp_path / "works").read_bytes()
    assert b"/lib64/ld-linux-x86-64.so.2" in program
    base = [
        *(Member(str(path).lstrip("/"), body=path.read_bytes(), mode=0o755) for path in found),
        Member("etc/passwd", body=b"root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532::/:/sbin/nologin\n"),
    ]
    config = {"User": "65532", "Entrypoint": ["/app/works"], "WorkingDir": "/"}
    write_image(tmp_path / "in", [base, [Member("app/works", body=program, mode=0o755)]], config=config)
    template = await Template.build("distroless", from_=f"oci:{tmp_path / 'in'}:latest")
    try:
        async with await template.fork() as vm, await template.fork() as other:
            for each, text in ((vm, "b\na\nlast\n"), (other, "one\n")):
                done = await each.exec(await each.image_argv(), input=text, check=True)
                assert done.stdout == f"nonroot {text.count(chr(10))} {text.splitlines()[-1]}\n"
            with pytest.raises(ExecError):
                await vm.shell("true")
    finally:
        await template.remove()
        await (await Image.open(template.manifest.image)).remove()


def _put_python(tar: tarfile.TarFile) -> None:
    """The Python that runs this is in /usr/local, as in the image `python`, without what it was installed with."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    lib, left_out = (
        Path(sys.base_prefix) / "lib",
        {"test", "idlelib", "ensurepip", "site-packages", "__pycache__", "tkinter"},
    )

    def wanted(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        name = info.name.rpartition("/")[2]
        info.uid = info.gid = 0
        return None if name in left_out or name.startswith("config-") else info

    program = Path(sys.base_prefix) / "bin" / version
    tar.add(program, f"usr/local/bin/{version}")
    for name in ("python3", "python"):
        info = tarfile.TarInfo(f"usr/local/bin/{name}")
        info.type, info.linkname = tarfile.SYMTYPE, version
        tar.addfile(info)
    tar.add(lib / version, f"usr/local/lib/{version}", filter=wanted)
    for shared in lib.glob("libpython3.*.so*"):
        tar.add(shared, f"usr/local/lib/{shared.name}")
    site = tarfile.TarInfo(f"usr/local/lib/{version}/site-packages")
    site.type, site.mode = tarfile.DIRTYPE, 0o755
    tar.addfile(site)


@pytest.mark.slow
@pytest.mark.image
@pytest.mark.needs("umoci", "mmdebstrap", "root")
async def test_an_image_of_debian_with_a_python_of_its_own_knows_the_module(tmp_path, monkeypatch):
    """Debian's least by mmdebstrap, above it a Python in /usr/local, as the image `python:slim` has it."""
    purelib = sysconfig.get_path("purelib", vars={"base": "/usr/local"})
    need("stock-python", found=purelib.endswith("/site-packages"))
    umoci = find_program("umoci")
    assert umoci is not None
    debian, python = tmp_path / "debian.tar", tmp_path / "python.tar"
    made = ["mmdebstrap", "--quiet", "--variant=minbase", "trixie", str(debian)]
    subprocess.run(made, check=True, capture_output=True)
    with tarfile.open(python, "w") as tar:
        _put_python(tar)
    options = ["--config.env", "PATH=/usr/local/bin:/usr/bin:/bin", "--config.env", "LD_LIBRARY_PATH=/usr/local/lib"]
    options += ["--config.cmd", "python3", "--config.cmd", "--version", "--config.user", "1000"]
    make_by_umoci(umoci, tmp_path / "slim", [debian, python], options)
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    make_wheel(wheels, "greet", scripts="greet = greet:main")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    template = await Template.build("slim", from_=f"oci:{tmp_path / 'slim'}:latest", pip=["greet"])
    try:
        async with await template.fork(allow_guest_fork=1) as vm:
            said = (await vm.exec(await vm.image_argv(), check=True)).stdout
            assert said == f"Python {sys.version.split()[0]}\n"
            assert (await vm.exec(["greet"], check=True)).stdout == "greet 1.0\n"
            assert (await vm.shell("id -u; . /etc/os-release; echo $VERSION_CODENAME")).stdout == "1000\ntrixie\n"
            told = await vm.exec(["python3", "-c", "import vmfork_guest; print(vmfork_guest.__file__)"], check=True)
            assert told.stdout.startswith("/usr/local/lib/python3.")
            assert (await vm.run_code("6 * 7")).value == "42"
    finally:
        await template.remove()
        await (await Image.open(template.manifest.image)).remove()

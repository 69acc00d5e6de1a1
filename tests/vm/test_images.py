"""Container images run as forks: one with nothing in it but a program, and one that says how its programs run."""

from __future__ import annotations

import os
import stat
import struct

import pytest

from tests.images import Member, folder, hard, link, write_image
from vmfork.aio import Image, Template, VMConfig
from vmfork.errors import ExecError
from vmfork.image.recipe import find_agent

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


@pytest.fixture
async def imported(request, tmp_path):
    """A template of an image of two layers: a static program, no shell, no libc, no passwd."""
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
                Member("app/bound", body=b"x", mode=0o755, xattrs=(("security.capability", _CAPABILITY),)),
            ],
        ],
        config={
            "Env": ["PATH=/app", "GREETING=hello there"],
            "WorkingDir": "/data",
            "User": "1234:77",
            "Cmd": ["agent"],
        },
    )
    name = f"oci-{os.getpid()}"
    image = await Image.import_oci(f"oci:{layout}", name)
    template = await Template.build(name, VMConfig(image=name))
    yield image, template
    await template.remove()
    await image.remove()


@pytest.mark.slow
async def test_an_image_of_one_static_program_runs_as_a_fork(imported):
    image, template = imported
    assert (image.argv, image.user, image.working_dir) == (("agent",), "1234:77", "/data")
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
        with pytest.raises(ExecError):
            await vm.shell("true")
        assert await vm.read_file("/init") == b"mine"
        names = {entry.name for entry in await vm.list_dir("/data")}
        assert names == {"null"}
        found = await vm.stat("/data")
        assert (found.uid, found.gid, stat.S_IMODE(found.mode)) == (1234, 77, 0o700)

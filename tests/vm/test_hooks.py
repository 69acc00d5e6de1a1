"""Hooks on both sides of a freeze, files and environment of one fork, and secrets that may not be frozen."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from vmfork.adopt.hooks import OUTPUT_LIMIT
from vmfork.aio import VM, Template
from vmfork.config import VMConfig
from vmfork.errors import ConfigError, HookError, LaunchError, SecretsPresent, SetupError, TemplateNotFound

pytestmark = [pytest.mark.vm, pytest.mark.kvm]

# For hooks that never end; those before them must have time to, on a busy host too.
HOOK_LIMIT_S = 4.0


def write_hook(path: str, *lines: str, mode: str = "+x") -> str:
    """A line of shell that writes a hook."""
    script = "\n".join(["#!/bin/sh", *lines, ""])
    return f"mkdir -p $(dirname {path}); cat > {path} <<'END'\n{script}END\nchmod {mode} {path}"


# What the hook does is asked for by a file of the fork, which is in place before it runs.
AFTER = write_hook(
    "/etc/vmfork/after-fork.d/20-second",
    'echo "second $VMFORK_TEMPLATE $VMFORK_FORK_ID $VMFORK_GENERATION $GREETING" >> /root/log',
    "case $(cat /root/wish 2>/dev/null) in",
    "    fail) echo to-stdout; echo to-stderr >&2; exit 3;;",
    "    hang) echo hanging; sleep 1000;;",
    "    flood) head -c 10000000 /dev/zero | tr '\\0' x; echo the-end; exit 5;;",
    "    endless) while :; do echo yes; done;;",
    "    panic) echo c > /proc/sysrq-trigger; sleep 1000;;",
    "    stop) kill -STOP 1; kill -KILL 1;;",
    "esac",
)
FIRST = write_hook(
    "/etc/vmfork/after-fork.d/10-first", "echo first >> /root/log; cat /run/vmfork/generation >> /root/log"
)
BEFORE = write_hook("/etc/vmfork/before-freeze.d/10-only", 'echo "before $VMFORK_TEMPLATE" >> /root/log')
NO_HOOKS = "touch /etc/vmfork/after-fork.d/.hidden /etc/vmfork/after-fork.d/20-second~"


@pytest.fixture(scope="module")
def hooked(template_name):
    template = asyncio.run(Template.build("hooked", VMConfig(), warm_up=[AFTER, FIRST, BEFORE, NO_HOOKS]))
    yield template
    asyncio.run(template.remove())


async def test_hooks_run_in_the_order_of_their_names_and_know_the_fork(hooked) -> None:
    assert hooked.manifest.hooks == ("/etc/vmfork/after-fork.d/10-first", "/etc/vmfork/after-fork.d/20-second")
    async with await hooked.fork(env={"GREETING": "hello"}) as vm:
        log = (await vm.read_file("/root/log")).decode().splitlines()
        assert log == [
            "before hooked",
            "first",
            vm.generation,
            f"second hooked {vm.id} {vm.generation} hello",
        ]
        assert vm.timings.thaw_s > 0


@pytest.mark.parametrize(
    ("wish", "reason", "end_of_output"),
    [
        ("fail", "exit status 3", b"to-stdout\nto-stderr\n"),
        ("hang", f"took longer than {HOOK_LIMIT_S:g} s", b"hanging\n"),
        ("flood", "exit status 5", b"xxthe-end\n"),
        ("endless", f"took longer than {HOOK_LIMIT_S:g} s", b"yes\n"),
    ],
)
async def test_a_hook_that_fails_destroys_the_fork(hooked, wish, reason, end_of_output) -> None:
    never_ends = wish in {"hang", "endless"}
    template = await Template.open("hooked", config=VMConfig(hook_timeout_s=HOOK_LIMIT_S)) if never_ends else hooked
    begin = time.monotonic()
    with pytest.raises(SetupError) as caught:
        await template.fork(files={"/root/wish": wish})
    assert time.monotonic() - begin < HOOK_LIMIT_S + 100
    error = caught.value
    assert (error.item, error.reason) == ("hook /etc/vmfork/after-fork.d/20-second", reason)
    assert len(error.output) <= OUTPUT_LIMIT
    assert error.output.endswith(end_of_output)
    assert end_of_output.decode().splitlines()[-1] in error.details()
    assert await VM.list() == []


async def test_a_hook_that_takes_the_guest_down_is_told_with_its_console(hooked) -> None:
    with pytest.raises(LaunchError) as caught:
        await hooked.fork(files={"/root/wish": "panic"})
    assert "20-second" in caught.value.reason
    assert "sysrq" in caught.value.console_tail.lower()
    assert await VM.list() == []


async def test_a_hook_cannot_kill_the_agent(hooked) -> None:
    """The kernel lets nobody signal init to death."""
    async with await hooked.fork(files={"/root/wish": "stop"}) as vm:
        await vm.ping()


async def test_a_program_can_watch_the_generation_change(template) -> None:
    """It is replaced by rename, so a watch of the folder sees it, and no reader sees half of one."""
    async with await template.fork() as vm:
        before = await vm.stat("/run/vmfork/generation")
        assert (await vm.read_file("/run/vmfork/generation")).decode() == f"{vm.generation}\n"
    async with await template.fork() as other:
        after = await other.stat("/run/vmfork/generation")
        assert other.generation != vm.generation
        assert before.size == after.size == 33


BAD_HOOKS = {
    "fails": (write_hook("/etc/vmfork/before-freeze.d/1", "echo why; exit 7"), "exit status 7"),
    "no-mode": (write_hook("/etc/vmfork/after-fork.d/1", "true", mode="-x"), "is not executable"),
    "folder": ("mkdir -p /etc/vmfork/after-fork.d/1", "is not executable"),
    "dangling": (
        "mkdir -p /etc/vmfork/before-freeze.d; ln -s /nowhere /etc/vmfork/before-freeze.d/1",
        "no such program",
    ),
    "hangs": (
        write_hook("/etc/vmfork/before-freeze.d/1", "echo why; sleep 1000"),
        f"took longer than {HOOK_LIMIT_S:g} s",
    ),
}
SECRETS = {"secret_paths": ["/root/key", "/root/none"], "secret_env": ["TOKEN", "NONE"]}
LEAVES_BOTH = ["echo x > /root/key", "setsid sleep 1000 > /dev/null 2>&1 &"]
USES_AND_REMOVES = [
    "echo $TOKEN > /root/key",
    "test 6 = $(head -c -1 /root/key | wc -c)",
    "echo ${#TOKEN} > /root/length",
    "rm /root/key",
]


@pytest.fixture(scope="module")
def built(template_name):
    """What became of the builds that the tests below look at, side by side: a template, or its error."""
    wanted = {name: {"warm_up": [warm_up]} for name, (warm_up, _) in BAD_HOOKS.items()} | {
        "holds-secrets": {"warm_up": LEAVES_BOTH, "env": {"TOKEN": "sesame"}, **SECRETS},
        "held-a-secret": {"warm_up": USES_AND_REMOVES, "env": {"TOKEN": "sesame"}, **SECRETS},
        "may-hold-secrets": {"warm_up": LEAVES_BOTH[:1], "allow_secrets": True, **SECRETS},
    }

    async def build_all() -> list[Template | BaseException]:
        slots = asyncio.Semaphore(max(2, os.cpu_count() or 2))

        async def build(name: str) -> Template:
            async with slots:
                config = VMConfig(hook_timeout_s=HOOK_LIMIT_S) if name == "hangs" else VMConfig()
                return await Template.build(name, config, **wanted[name])

        return await asyncio.gather(*map(build, wanted), return_exceptions=True)

    ends = dict(zip(wanted, asyncio.run(build_all()), strict=True))
    yield ends
    for end in ends.values():
        if isinstance(end, Template):
            asyncio.run(end.remove())


@pytest.mark.parametrize("name", BAD_HOOKS)
async def test_a_bad_hook_fails_the_build(built, name) -> None:
    error = built[name]
    assert isinstance(error, HookError)
    assert error.path.endswith(".d/1")
    assert BAD_HOOKS[name][1] in str(error)
    if "echo why" in BAD_HOOKS[name][0]:
        assert "why" in error.details()
    with pytest.raises(TemplateNotFound):
        await Template.open(name)
    assert await VM.list() == []


async def test_files_of_a_fork_are_its_own(template, tmp_path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\necho ran\n")
    script.chmod(0o4751)
    given = {"/opt/deep/token": b"\0secret", "/etc/motd": "text", "/opt/script": script}
    async with await template.fork(files=given) as vm:
        assert (await vm.exec(["/opt/script"])).stdout == "ran\n"
        # Not to whom it lends its rights.
        assert (await vm.stat("/opt/script")).mode & 0o7777 == 0o751
        assert await vm.read_file("/opt/deep/token") == b"\0secret"
        assert (await vm.stat("/opt/deep/token")).mode & 0o777 == 0o600
        assert await vm.read_file("/etc/motd") == b"text"
    async with await template.fork() as vm:
        assert not (await vm.exec(["test", "-e", "/opt/deep/token"])).ok
    await template.verify()


async def test_a_file_that_cannot_be_written_destroys_the_fork(template) -> None:
    with pytest.raises(SetupError) as caught:
        await template.fork(files={"/proc/nothing/here": b"x"})
    assert caught.value.item == "file /proc/nothing/here"
    assert await VM.list() == []


@pytest.mark.parametrize(
    "files",
    [
        {"relative": b""},
        {"/": b""},
        {"/dir/": b""},
        {"/a\0b": b""},
        {"/a": 3},
        {"/a": Path("/nowhere")},
        {"/a": Path("/")},
    ],
)
async def test_files_that_make_no_sense_are_refused(template, files) -> None:
    with pytest.raises(ConfigError):
        await template.fork(files=files)
    assert await VM.list() == []


async def test_what_is_secret_is_not_frozen(built) -> None:
    error = built["holds-secrets"]
    assert isinstance(error, SecretsPresent)
    path, variable = error.found
    assert path == "/root/key"
    assert variable.startswith("$TOKEN (process ")
    assert "sesame" not in str(error)
    with pytest.raises(TemplateNotFound):
        await Template.open("holds-secrets")


async def test_a_secret_that_was_used_and_removed_does_not_stop_the_freeze(built) -> None:
    template = built["held-a-secret"]
    assert template.manifest.secrets_found == ()
    assert "sesame" not in template.manifest.to_json().decode()
    async with await template.fork() as vm:
        assert (await vm.shell("cat /root/length; echo ${TOKEN-unset}")).stdout == "6\nunset\n"


async def test_secrets_that_are_allowed_are_recorded_and_audited(built) -> None:
    template = built["may-hold-secrets"]
    assert template.manifest.secrets_found == ("/root/key",)
    report = await template.audit(2)
    assert {row.name: row.verdict for row in report.rows}["secrets"] == "unsafe"


@pytest.mark.parametrize("wrong", [{"secret_paths": ["key"]}, {"secret_env": ["A=B"]}, {"secret_paths": "/key"}])
async def test_secrets_that_make_no_sense_are_refused(wrong) -> None:
    with pytest.raises(ConfigError):
        await Template.build("secret", VMConfig(), **wrong)

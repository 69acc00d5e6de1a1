"""The command line with real machines: what it prints where, what it exits with, and that it leaves nothing."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import termios
from dataclasses import replace
from pathlib import Path

import pytest

from tests.rules.capabilities import need
from tests.vm.agents import copy_default_image
from tests.vm.cli_runner import COMMAND, Outcome, Running, left_of, processes_of, vmfork
from tests.vm.other_user import copy_for_others, find_python_for
from vmfork.errors import DeadlineExceeded
from vmfork.machine.folder import list_records
from vmfork.store import Manifest

pytestmark = pytest.mark.vm


@pytest.fixture(autouse=True)
def nothing_is_left(instance):
    yield
    assert left_of(instance.runtime) == []


@pytest.fixture
def run(template_name):
    """`vmfork run -t` the template of the test run."""

    def run_in_fork(*argv: str, **options) -> Outcome:
        return vmfork("run", "-t", template_name, *argv, **options)

    return run_in_fork


def is_error(outcome: Outcome, status: int, *texts: str, hint: bool = True) -> None:
    """It failed with that status, told why, and said what to do."""
    assert outcome.status == status, outcome
    lines = outcome.err.splitlines()
    assert any(line.startswith("error: ") for line in lines), outcome
    assert any(line.startswith("hint: ") for line in lines) == hint, outcome
    for text in texts:
        assert text in outcome.err, outcome


def end_of(command: list[str], **streams) -> subprocess.CompletedProcess[bytes]:
    """The process has ended, whatever its status; for streams that `vmfork` cannot give."""
    return subprocess.run(command, check=False, timeout=60, **streams)


# run: exit status and streams


@pytest.mark.qemu
@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -KILL $$"], 128 + signal.SIGKILL),
        (["no-such-program"], 127),
        (["/etc/passwd"], 126),
        (["-w", "/nowhere", "true"], 125),
        (["--timeout", "300ms", "--", "sleep", "60"], 124),
    ],
)
def test_run_exits_with_the_status_of_the_command(run, argv, status) -> None:
    done = run(*argv)
    assert (done.status, done.raw) == (status, b"")
    told = done.err.splitlines()
    assert [line.partition(":")[0] for line in told] == (["error", "hint"] if status in {124, 125, 126, 127} else [])


def test_run_passes_arguments_environment_and_streams(run) -> None:
    done = run("--", "uname", "-a").check()
    assert done.out.startswith("Linux vm-")
    assert done.err == ""
    script = 'echo "$A|$B|$C" $PWD "$0"; echo err >&2; exit 3'
    done = run("-e", "A=1=2", "-e", "B=", "-e", "C", "-w", "/tmp", "sh", "-c", script, "a b", env={"C": "ours"})
    assert done == Outcome(3, b"1=2||ours /tmp a b\n", "err\n")
    done = run("--json", "--timeout", "30", "--", "sh", "-c", "echo out; echo err >&2; exit 4")
    body = json.loads(done.raw)
    assert (done.status, done.err) == (4, "")
    assert (body["exit_code"], body["stdout"], body["stderr"]) == (4, "out\n", "err\n")
    assert 0 < body["duration_s"] < body["timings"]["total_s"] + body["duration_s"] < 60


def test_run_tells_a_time_limit_from_a_commands_own_status(run) -> None:
    ended, struck = (
        json.loads(run("--json", *argv).raw)
        for argv in (("--", "sh", "-c", "exit 124"), ("--timeout", "300ms", "--", "sleep", "60"))
    )
    assert ended["exit_code"] == struck["exit_code"] == 124
    assert (ended["error"], struck["error"]["code"]) == (None, DeadlineExceeded.code)


def test_run_keeps_as_much_output_as_it_is_told_and_ends_what_writes_more(run) -> None:
    exact = ("--json", "--max-output", "1M", "head", "-c", "1048576", "/dev/zero")
    assert len(json.loads(run(*exact).check().raw)["stdout"]) == 1048576
    done = run("--json", "--max-output", "1M", "yes")
    body = json.loads(done.raw)
    assert (done.status, body["exit_code"], body["error"]["code"], len(body["stdout"])) == (125, 125, "limit", 1048576)
    assert "gave more than 1048576 bytes" in done.err
    assert "--max-output" in done.err
    is_error(run("--max-output", "1M", "true"), 125, "limits what --json keeps")


@pytest.mark.qemu
def test_run_passes_a_megabyte_both_ways(run) -> None:
    data = os.urandom(1 << 20)
    done = run("cat", input=data).check()
    assert hashlib.sha256(done.raw).digest() == hashlib.sha256(data).digest()
    done = run("sha256sum", input=data).check()
    assert done.out.split()[0] == hashlib.sha256(data).hexdigest()


def test_run_ends_with_the_command_although_its_input_goes_on(run) -> None:
    idle, held = os.pipe()
    try:
        assert run("echo", "done", stdin=idle).check().out == "done\n"
        os.write(held, b"line\n" * 100_000 if fcntl.fcntl(held, fcntl.F_GETPIPE_SZ) > 500_000 else b"line\n")
        assert run("head", "-n", "1", stdin=idle).check().out == "line\n"
    finally:
        os.close(idle)
        os.close(held)


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_run_works_with_a_closed_stream(template_name, closed) -> None:
    redirect = {0: "<&-", 1: ">&-", 2: "2>&-"}[closed]
    line = f'exec "$@" {redirect}'
    script = "cat; echo out; echo err >&2"
    command = [*COMMAND, "run", "-t", template_name, "sh", "-c", script]
    done = end_of(
        ["sh", "-c", line, "sh", *command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    if closed == 1:  # what the program printed is lost, which is no success
        assert (done.returncode, done.stdout) == (141, b"")
        assert b"error: standard output is closed" in done.stderr
    else:
        assert (done.returncode, done.stdout) == (0, b"out\n"), done
        assert done.stderr == (b"" if closed == 2 else b"err\n")


@pytest.fixture
def terminal():
    """Both ends of a terminal: ours, and the one a command gets."""
    ours, theirs = pty.openpty()
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


def run_at_terminal(theirs: int, template: str, *argv: str) -> subprocess.Popen[bytes]:
    """`vmfork run` in the foreground of that terminal."""
    return subprocess.Popen(
        [*COMMAND, "run", "-t", template, *argv],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - no threads here
    )


def test_run_reads_a_terminal(template_name, terminal) -> None:
    ours, theirs = terminal
    with run_at_terminal(theirs, template_name, "cat") as process:
        os.write(ours, b"typed\n\x04")
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, b"typed\n", b"")


def test_ctrl_c_at_a_terminal_ends_a_run(template_name, terminal) -> None:
    ours, theirs = terminal
    with run_at_terminal(theirs, template_name, "sh", "-c", "echo up; exec cat") as process:
        assert process.stdout.readline() == b"up\n"
        os.write(ours, b"\x03")
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, b"", b"interrupted by SIGINT\n")


@pytest.mark.qemu
def test_a_machine_that_ends_during_a_run_is_told_with_its_reason(instance, template_name) -> None:
    with Running("run", "-t", template_name, "sh", "-c", "echo up; sleep 60") as running:
        running.wait_for("up", fd=1)
        (record,) = list_records(instance.vms)
        assert record.process.kill()
        is_error(running.end(), 125, "the machine ended (QEMU exit status -9)", "lack of memory")
    done = vmfork("run", "-t", template_name, "sh", "-c", "echo c > /proc/sysrq-trigger; sleep 60")
    is_error(done, 125, "the machine ended: the guest's kernel panicked: sysrq triggered crash", "guest console:")


def test_a_reader_that_goes_away_ends_a_run_quietly(template_name) -> None:
    with Running("run", "-t", template_name, "yes") as running:
        running.wait_for("y\n", fd=1)
        running.process.stdout.close()
        err = running.process.stderr.read()
        assert (running.process.wait(60), err) == (141, b"")


@pytest.mark.parametrize(
    ("argv", "status"),
    [(["template", "ls"], 1), (["config", "--json"], 1), (["--help"], 1), (["template", "show", "nope"], 1)],
)
def test_a_broken_pipe_gives_no_traceback(template_name, argv, status) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        command = [*COMMAND, *argv]
        out = end_of(command, stdout=write, stderr=subprocess.PIPE)
        both = end_of(command, stdout=write, stderr=write)
    finally:
        os.close(write)
    assert (out.returncode, both.returncode) == (status, status)
    assert b"Traceback" not in out.stderr
    assert b"Exception" not in out.stderr


def test_a_full_device_is_told() -> None:
    with open("/dev/full", "w") as full:
        done = end_of([*COMMAND, "--help"], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.decode().startswith(f"error: {os.strerror(errno.ENOSPC)}\nhint: ")


# Wrong input


@pytest.mark.parametrize(
    ("argv", "status", "text"),
    [
        (["run", "-t", "nope", "true"], 125, "no template is named 'nope'"),
        (["run", "-e", "=x", "true"], 125, "'=x' is not K=V"),
        (["run", "-e", "SURELY_NOT_SET", "true"], 125, "SURELY_NOT_SET is not set here"),
        (["run", "--memory", "big", "true"], 125, "'big' is not a size"),
        (["run", "--timeout", "soon", "true"], 125, "'soon' is not a duration"),
        (["run", "--nope", "true"], 125, "--nope"),
        (["run", "-t", "test", "--cpus", "2", "true"], 125, "template 'test' has 1"),
        (["run", "-t", "test", "--memory", "512M", "true"], 125, "template 'test' has 256 MiB"),
        (["template", "build", "new", "--image", "nope"], 1, "no image is named 'nope'"),
        (["template", "build", "new", "--memory", "64M"], 2, "too little for image"),
        (["template", "build", "new", "--memory", "1"], 2, "out of range"),
        (["template", "build", "new", "--cpus", "0"], 2, "out of range"),
        (["template", "build", "new", "--cpus", "many"], 2, "--cpus"),
        (["template", "build", "new", "--ready-timeout", "x"], 2, "'x' is not a duration"),
        (["template", "build", "test"], 1, "exists already"),
        (["template", "show", "nope"], 1, "no template is named 'nope'"),
        (["template", "verify", "nope"], 1, "no template is named 'nope'"),
        (["template", "rm", "nope"], 1, "no template is named 'nope'"),
        (["image", "rm", "nope"], 1, "no image is named 'nope'"),
        (["factory", "init"], 2, "no template to build"),
        (["nope"], 2, "nope"),
    ],
)
def test_wrong_input_is_told_with_a_hint(template_name, argv, status, text) -> None:
    done = vmfork(*argv)
    is_error(done, status, text)
    assert done.raw == b""


def test_an_image_that_is_missing_is_told_with_the_one_that_may_have_been_meant(template_name, tmp_path) -> None:
    """Of those that there are, and of those that the file of the recipe says how to make."""
    path = tmp_path / "vmfork.toml"
    path.write_text(
        '[image.tools]\npackages = ["git"]\n[template.new]\nimage = "tols"\n[template.old]\nimage = "deflt"\n'
    )
    for name, image, meant in (("new", "tols", "tools"), ("old", "deflt", "default")):
        done = vmfork("template", "build", "-f", str(path), name)
        is_error(done, 1, f"no image is named '{image}'", f"did you mean {meant}? ")


@pytest.mark.parametrize("name", ["/", "..", "", "x" * 200])
def test_bad_names_are_refused_everywhere(instance, name) -> None:
    before = sorted(instance.runtime.rglob("*"))
    for argv in (["template", "build"], ["template", "rm"], ["image", "rm"], ["image", "build"]):
        done = vmfork(*argv, "--", name)
        is_error(done, 2)
        assert done.raw == b""
    is_error(vmfork("run", "-t", name, "--", "true"), 125)
    assert sorted(instance.runtime.rglob("*")) == before


def test_a_missing_emulator_is_told(template_name, instance, tmp_path) -> None:
    env = {"PATH": str(tmp_path)}
    is_error(vmfork("template", "build", "new", env=env), 1, "qemu-system-x86_64 was not found", "apt-get install")
    is_error(vmfork("run", "true", env=env), 125, "qemu-system-x86_64 was not found", "apt-get install")
    done = vmfork("doctor", "--json", env=env)
    checks = {check["name"]: check for check in json.loads(done.raw)["checks"]}
    assert (done.status, checks["qemu"]["level"]) == (1, "fail")
    assert "apt-get install" in checks["qemu"]["todo"]


@pytest.fixture
def old_emulator(tmp_path) -> dict[str, str]:
    """An environment in which the emulator is one that says it is QEMU 7.1."""
    path = tmp_path / "qemu-old"
    path.write_text("#!/bin/sh\necho 'QEMU emulator version 7.1.0 (Debian 1:7.1+dfsg-2)'\n")
    path.chmod(0o755)
    return {"VMFORK_VM_QEMU": str(path)}


def test_an_emulator_too_old_is_told(template_name, old_emulator) -> None:
    said = ("is QEMU 7.1, too old", "7.2 or newer")
    is_error(vmfork("template", "build", "new", env=old_emulator), 1, *said)
    is_error(vmfork("run", "true", env=old_emulator), 125, *said)
    is_error(vmfork("run", "-t", template_name, "true", env=old_emulator), 125, *said)
    done = vmfork("doctor", "--json", env=old_emulator)
    checks = {check["name"]: check for check in json.loads(done.raw)["checks"]}
    assert (done.status, checks["qemu"]["level"]) == (1, "fail")


# Listings


def test_listings_and_their_json(template_name) -> None:
    config = json.loads(vmfork("config", "--json").check().raw)["settings"]
    assert config["runtime"] == {"value": os.environ["VMFORK_RUNTIME_DIR"], "origin": "VMFORK_RUNTIME_DIR"}
    assert "VMFORK_RUNTIME_DIR" in vmfork("config").check().out
    images = json.loads(vmfork("image", "ls", "--json").check().raw)
    assert "default" in {image["name"] for image in images}
    assert "default" in vmfork("image", "ls").check().out
    (listed,) = json.loads(vmfork("template", "ls", "--json").check().raw)
    shown = json.loads(vmfork("template", "show", template_name, "--json").check().raw)
    assert shown.pop("opened_by") == [shutil.which("qemu-system-x86_64")]
    assert shown == listed
    assert (shown["name"], shown["cpus"], shown["memory_mib"], shown["image"]) == (template_name, 1, 256, "default")
    assert f"generation: {shown['generation']}" in vmfork("template", "show", template_name).check().out
    assert vmfork("template", "ls").check().out.splitlines()[1].split()[0] == template_name
    verified = json.loads(vmfork("template", "verify", template_name, "--json").check().raw)
    assert verified == {"verified": True, "template": template_name}
    assert "is whole" in vmfork("template", "verify", template_name).check().out


@pytest.mark.qemu
def test_doctor_tells_that_machines_run_here(template_name) -> None:
    done = vmfork("doctor", "--json").check()
    body = json.loads(done.raw)
    assert body["ok"] is True
    assert {check["name"] for check in body["checks"]} >= {"qemu", "image", "agent", "keeper", "kvm", "memory", "space"}
    assert vmfork("doctor").check().out.endswith("VMs can run here.\n")


def test_an_image_is_removed(instance, template_name, tmp_path) -> None:
    copy_default_image(instance, tmp_path / "images")
    env = {"VMFORK_HOME": str(tmp_path)}
    is_error(vmfork("image", "rm", "default", env=env), 1, "templates were made of image 'default'")
    done = json.loads(vmfork("image", "rm", "default", "--force", "--json", env=env).check().raw)
    assert (done["removed"], done["image"]) == (True, "default")
    assert template_name in done["templates"]
    assert json.loads(vmfork("image", "ls", "--json", env=env).check().raw) == []
    is_error(vmfork("image", "rm", "default", env=env), 1, "no image is named 'default'")


def test_the_shell_is_given_completions() -> None:
    assert "_vmfork_completion" in vmfork(env={"_VMFORK_COMPLETE": "bash_source"}).check().out
    words = {"COMP_WORDS": "vmfork te", "COMP_CWORD": "1", "_VMFORK_COMPLETE": "bash_complete"}
    assert vmfork(env=words).check().out == "plain,template\n"


@pytest.mark.parametrize(
    ("words", "kind"),
    [("run -t", "template"), ("template show", "template"), ("template audit", "template"), ("bench -t", "template"),
     ("image rm", "image"), ("template build x --image", "image")],
)  # fmt: skip
def test_the_shell_completes_names(template_name, words, kind, tmp_path) -> None:
    name = {"template": template_name, "image": "default"}[kind]
    asked = {"COMP_WORDS": f"vmfork {words} {name[:2]}", "COMP_CWORD": str(len(words.split()) + 1)}
    asked |= {"_VMFORK_COMPLETE": "bash_complete"}
    assert f"plain,{name}\n" in vmfork(env=asked).check().out
    nowhere = {"VMFORK_HOME": str(tmp_path / "a"), "VMFORK_RUNTIME_DIR": str(tmp_path / "b")}
    assert vmfork(env=asked | nowhere).check().out.strip() == ""


# Damage


def test_damage_is_told_with_a_hint(instance, template_name) -> None:
    folder = (instance.templates / template_name / "current").resolve()
    for name, harm in (
        ("manifest.json", lambda data: data[:200]),
        ("manifest.json", lambda data: data.replace(b'"cpus": 1', b'"cpus": 9')),
        ("manifest.json", lambda data: b"[" * 100_000),
        ("manifest.json", lambda data: b""),
        ("state", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
    ):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(harm(whole))
        try:
            is_error(vmfork("run", "-t", template_name, "true"), 125, "--replace", name.partition(".")[0])
            (listed,) = json.loads(vmfork("template", "ls", "--json").check().raw)
            assert listed["state"] == listed["error"]["code"] == "template-corrupt", listed
        finally:
            (folder / name).write_bytes(whole)
    vmfork("template", "verify", template_name).check()
    memory = folder / "memory"
    size = memory.stat().st_size
    os.truncate(memory, size + 4096)
    try:
        is_error(vmfork("run", "-t", template_name, "true"), 125, f"memory: it has {size + 4096} bytes", "--replace")
        is_error(vmfork("template", "verify", template_name), 1, f"memory: it has {size + 4096} bytes", "--replace")
    finally:
        os.truncate(memory, size)
    data, at = memory.open("r+b"), size // 2
    with data:
        data.seek(at)
        before = data.read(1)
        data.seek(at)
        data.write(bytes([before[0] ^ 1]))
        data.flush()
        try:
            is_error(vmfork("template", "verify", template_name), 1, "memory: its content", "--replace")
        finally:
            data.seek(at)
            data.write(before)
    vmfork("template", "verify", template_name).check()


@pytest.mark.parametrize("trait", ["qemu.version", "image.kernel"])
def test_a_template_of_another_time_is_told_with_a_hint(instance, template_name, trait) -> None:
    file = (instance.templates / template_name / "current").resolve() / "manifest.json"
    whole = file.read_bytes()
    manifest = Manifest.from_json(whole, name=template_name)
    other = replace(manifest, traits={**manifest.traits, trait: "another"}, qemu_stamp="another")
    file.write_bytes(other.to_json())
    try:
        said = (f"{trait} is 'another' in the template and '{manifest.traits[trait]}' here", "--replace")
        is_error(vmfork("run", "-t", template_name, "true"), 125, *said)
        is_error(vmfork("template", "verify", template_name), 1, *said)
        is_error(vmfork("template", "audit", template_name), 1, *said)
    finally:
        file.write_bytes(whole)


# What a template must not hold, and what one fork alone is given


def test_a_secret_stops_a_build_unless_it_is_allowed(instance, template_name) -> None:
    build = ("template", "build", "holds", "-e", "TOKEN=sesame", "--run", "echo $TOKEN > /root/key")
    named = ("--secret-path", "/root/key", "--secret-env", "TOKEN")
    refused = Running(*build, "--run", "setsid sleep 1000 > /dev/null 2>&1 &", *named)
    allowed = Running(*build[:2], "allowed", *build[3:], *named, "--allow-secrets", "--json")
    with refused, allowed:
        is_error(refused.end(), 1, "still holds /root/key, $TOKEN (process ", "--allow-secrets")
        manifest = json.loads(allowed.end().check().raw)
    try:
        assert manifest["secrets_found"] == ["/root/key"]
        assert "sesame" not in (instance.templates / "allowed" / "current" / "manifest.json").read_text()
        report = vmfork("template", "audit", "allowed", "-n", "2")
        assert (report.status, report.out.splitlines()[-1]) == (4, "template allowed: 2 forks, NOT safe: secrets")
    finally:
        vmfork("template", "rm", "allowed").check()
    assert not (instance.templates / "holds").exists()


def test_a_file_is_given_to_one_fork(run, tmp_path) -> None:
    file = tmp_path / "token"
    file.write_bytes(b"sesame")
    place = ("--file", f"{file}:/run/secrets/token")
    assert run(*place, "cat", "/run/secrets/token").check().out == "sesame"
    assert run("test", "-e", "/run/secrets/token").status == 1
    for mode in (0o600, 0o755, 0o444):
        file.chmod(mode)
        assert run(*place, "stat", "-c", "%a", "/run/secrets/token").check().out == f"{mode:o}\n"
    is_error(run("--file", f"{file}:relative", "true"), 125, "is not HOST:GUEST")
    is_error(run("--file", f"{file}-not-there:/x", "true"), 125, "cannot be read")


# Templates built by the command


def test_default_templates_are_built_for_their_size_the_first_time() -> None:
    argv = ("run", "--cpus", "2", "--memory", "512M", "--", "sh", "-c", "nproc; grep MemTotal /proc/meminfo")
    first = vmfork(*argv).check()
    again = vmfork(*argv).check()
    vmfork("template", "rm", "default-2c-512m").check()
    cpus, total = first.out.splitlines()
    assert cpus == "2"
    assert 400_000 < int(total.split()[1]) <= 512 * 1024
    assert "template: booting image 'default'" in first.err
    assert (again.out, again.err) == (first.out, "")


def test_failing_builds_show_what_the_guest_said_and_leave_nothing(instance, template_name) -> None:
    warm = Running("template", "build", "bad", "--run", "true", "--run", "echo to-out; echo to-err >&2; exit 3")
    ready = Running("template", "build", "late", "--ready", "echo not-yet >&2; false", "--ready-timeout", "700ms")
    with warm, ready:
        is_error(warm.end(), 1, "exit status 3", "to-out", "to-err", hint=False)
        is_error(ready.end(), 1, "took longer than 0.7 s", "not-yet", hint=False)
    assert sorted(path.name for path in instance.templates.iterdir()) == [template_name]


def test_the_factory_from_init_to_destroy(instance, tmp_path) -> None:
    file = tmp_path / "vmfork.toml"
    file.write_text('[factory]\ntemplate = true\ntemplate_name = "made"\n')
    config = ("--config", str(file))

    def told(verb: str, status: int = 0) -> dict[str, object]:
        done = vmfork("factory", verb, *config, "--json")
        assert done.status == status, done
        return json.loads(done.raw)

    off = told("status", 3)
    assert (off["on"], off["code"]) == (False, "template-not-found")
    assert vmfork("factory", "status", *config).status == 3
    with Running("template", "build", "made", "--run", "sleep 600") as other:
        other.wait_for("running 'sleep 600'")
        for argv in (
            ["factory", "init", *config],
            ["template", "build", "made"],
            ["template", "build", "made", "--replace"],
        ):
            is_error(vmfork(*argv), 1, "template 'made' is in use by process", "wait for it")
        assert told("status", 3)["code"] == "template-not-found"
        other.interrupt(signal.SIGINT)
        assert other.end().status == 128 + signal.SIGINT
    assert told("init") == {"initialized": True, "template": "made"}
    on = told("status")
    assert (on["on"], on["template"], on["cpus"], on["memory_mib"], on["differs"]) == (True, "made", 1, 256, [])
    assert vmfork("factory", "status", *config).check().out.startswith("on: template made")
    for strict in ((), ("--new",)):
        is_error(vmfork("factory", "init", *config, *strict), 1, "exists already", "factory destroy")
    assert "template made is ready" in vmfork("factory", "init", *config, "--ensure").check().out
    assert told("status")["generation"] == on["generation"]
    # What was forked goes on without its template, of which no mount is left.
    with Running("run", "-t", "made", "sh", "-c", "echo up; read l; date >&2; echo $l", stdin=subprocess.PIPE) as fork:
        fork.wait_for("up", fd=1)
        folder = str((instance.templates / "made" / "current").resolve())
        assert told("destroy") == {"destroyed": True, "template": "made", "stopped_server": None}
        assert folder not in Path("/proc/mounts").read_text()
        assert not (instance.templates / "made").exists()
        assert fork.end(input=b"go on\n").check().out == "up\ngo on\n"
    assert told("destroy") == {"destroyed": False, "template": "made", "stopped_server": None}
    assert vmfork("factory", "destroy", *config).check().out.startswith("nothing to do")


# An ordinary user, and a file system that runs full


@pytest.fixture
def user(instance, template_name):
    """A user who is not root, on a tmpfs of 300 MiB of their own that holds one template and no more."""
    need("root")
    uid = 65534
    base = Path(f"/dev/shm/vmfork-cli-user-{os.getpid()}")
    runtime = base / "run"
    runtime.mkdir(parents=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size=300M,mode=0700,uid={uid},gid={uid}", "none", runtime], check=True
    )
    copy_default_image(instance, base / "home" / "images")
    subprocess.run(["chown", "-R", f"{uid}:{uid}", base / "home"], check=True)
    env = {
        **os.environ,
        "HOME": str(base / "home"),
        "VMFORK_HOME": str(base / "home"),
        "VMFORK_RUNTIME_DIR": str(runtime),
        "PYTHONPATH": str(base / "python"),
    }
    try:
        copy_for_others(base / "python")
        python = find_python_for(uid, env)

        def start(*argv: str) -> Running:
            options = {"user": uid, "group": uid, "extra_groups": [], "cwd": "/"}
            return Running(*argv, env=env, command=(python, "-m", "vmfork"), **options)

        yield start, runtime
        assert left_of(runtime) == []
    finally:
        subprocess.run(["umount", runtime], check=True)
        shutil.rmtree(base)


def test_an_ordinary_user_is_told_once_what_forbids_kvm(user) -> None:
    device = Path("/dev/kvm")
    need("kvm-for-some", found=device.exists() and not device.stat().st_mode & 0o006)
    start, _ = user
    for argv in (["doctor"], ["run", "--", "true"], ["run", "--", "true"]):
        with start(*argv) as running:
            done = running.end().check()
        assert done.err.count("note: /dev/kvm may not be opened by nobody: ") == 1, done
        assert "sudo " in done.err
        assert ("may not be opened by nobody; " in done.out) == (argv == ["doctor"])


def test_an_ordinary_user_with_room_for_one_template(user) -> None:
    start, runtime = user

    def done(*argv: str) -> Outcome:
        with start(*argv) as running:
            return running.end()

    # Room is there when the build begins, and is taken while the guest boots.
    with start("template", "build", "full") as building:
        building.wait_for("template: booting")
        filler = runtime / "filler"
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(1 << 20))
        is_error(building.end(), 1, "ran full")
    assert left_of(runtime) == []
    is_error(done("template", "build", "full"), 1, "not enough space", "VMFORK_RUNTIME_DIR")
    filler.unlink()

    made = done("template", "build", "default", "--run", "echo a > /x", "--ready", "test -s /x", "--json").check()
    assert json.loads(made.raw)["warm_up"] == ["echo a > /x"]
    steps = [line.split()[1] for line in made.err.splitlines() if line.startswith("template: ")]
    assert steps == ["booting", "running", "waiting", "freezing", "recording", "template"]
    forked = done("run", "--", "sh", "-c", "cat /x; id -u; echo err >&2; exit 5")
    assert (forked.status, forked.raw) == (5, b"a\n0\n")
    assert forked.err.splitlines()[-1] == "err"  # behind what is told of a /dev/kvm that is not ours
    # He is told how his machines are kept, and has no more than that: only root can give each a user of its own.
    checks = {check["name"]: check for check in json.loads(done("doctor", "--json").raw)["checks"]}
    level, _, missing = checks["isolation"]["found"].partition(": ")
    assert level in ("basic", "namespaces")
    assert "without user: only root" in missing
    done("run", "--require-isolation", level, "--", "true").check()
    is_error(done("run", "--require-isolation", "full", "--", "true"), 125, "isolation 'full' is required", level)
    assert runtime.stat().st_uid == 65534
    assert "is whole" in done("template", "verify", "default").check().out
    audit = done("template", "audit", "default", "-n", "2").check()
    assert audit.out.endswith("template default: 2 forks, safe\n")
    file = (runtime / "templates" / "default" / "current").resolve() / "state"
    assert file.stat().st_uid == 65534
    assert file.stat().st_mode & 0o777 == 0o600
    # There is room for this one alone.
    examined = done("doctor")
    assert examined.status == 1
    assert re.search(r"(?m)^fail  space: .*\n +-> set VMFORK_RUNTIME_DIR", examined.out)
    is_error(done("template", "build", "more"), 1, "not enough space")
    assert json.loads(done("template", "ls", "--json").check().raw)[0]["name"] == "default"
    with start("run", "sh", "-c", "echo up; sleep 60") as running:
        running.wait_for("up", fd=1)
        running.interrupt(signal.SIGINT)
        assert running.end().status == 130
    done("template", "rm", "default").check()
    assert done("doctor").check().out.endswith("VMs can run here.\n")
    assert processes_of(runtime) == []
    assert not list((runtime / "templates").iterdir())


@pytest.mark.needs("root")
def test_root_with_a_full_runtime_folder(tmp_path, template_name) -> None:
    """Templates have a tmpfs each as root: what can be full is where records, logs and sockets lie."""
    runtime = tmp_path / "run"
    runtime.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", runtime], check=True)
    try:
        (runtime / "filler").write_bytes(bytes(64 * 1024))
        done = vmfork("template", "build", "full", env={"VMFORK_RUNTIME_DIR": str(runtime)})
        is_error(done, 1, os.strerror(errno.ENOSPC))
        assert left_of(runtime) == []
    finally:
        subprocess.run(["umount", "--recursive", runtime], check=True)


# template audit


def test_an_audit_tells_a_safe_template_in_a_table_and_in_json(template_name):
    outcome = vmfork("template", "audit", template_name, "-n", "2").check()
    assert outcome.out.splitlines()[0].split() == ["PROBE", "EXPECTED", "VERDICT", "FOUND"]
    assert outcome.out.splitlines()[-1] == f"template {template_name}: 2 forks, safe"
    report = json.loads(vmfork("template", "audit", template_name, "-n", "2", "--json").check().out)
    assert report["safe"] is True
    assert {row["verdict"] for row in report["rows"]} <= {"ok", "absent"}


def test_an_audit_exits_with_4_when_forks_are_not_safe(template_name):
    probes = ("--probe", "marker=cat /root/marker", "--same", "name=hostname")
    outcome = vmfork("template", "audit", template_name, "-n", "2", *probes)
    assert outcome.status == 4
    assert outcome.out.splitlines()[-1] == f"template {template_name}: 2 forks, NOT safe: marker, name"


@pytest.mark.parametrize(
    "options",
    [("-n", "1"), ("-n", "x"), ("--probe", "nameless"), ("--probe", "a/b=true"), ("--probe", "urandom=true")],
)
def test_an_audit_refuses_what_makes_no_sense(template_name, options):
    is_error(vmfork("template", "audit", template_name, *options), 2, hint=True)

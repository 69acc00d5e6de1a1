"""Machines by name and by the beginning of an id, for every command that takes one."""

from __future__ import annotations

import json
import os

import pytest

import vmfork
from tests.at_terminal import AtTerminal
from tests.vm.cli_runner import COMMAND
from tests.vm.cli_runner import vmfork as command
from vmfork.config import find_places
from vmfork.errors import ConfigError, StoreBusy

pytestmark = [pytest.mark.vm, pytest.mark.kvm]


def ids() -> set[str]:
    return {told["id"] for told in json.loads(command("ps", "--json").check().out)}


def test_a_machine_that_waits_for_an_owner_goes_by_its_beginning(template_name, tmp_path) -> None:
    with vmfork.Template.open(template_name).fork() as vm:
        handle = vm.detach(ttl_s=600)
    short = handle.id[:9]
    try:
        assert json.loads(command("resize", short, "--cpus", "1", "--json").check().out)["id"] == handle.id
        with AtTerminal(*COMMAND, "shell", short) as at:
            at.wait_for("# ")
            at.type("exit 4\n")
            assert at.end()[0] == 4
        done = command("exec", short, "true")
        assert (done.status, "waits for one owner" in done.err, "vmfork shell" in done.err) == (125, True, True)
        with pytest.raises(ConfigError, match="waits for one owner"):
            vmfork.VM.connect(short)
        made = json.loads(command("debug-bundle", short, "-o", str(tmp_path / "b.tar.gz"), "--json").check().out)
        assert "machine/record.json" in made["members"]
    finally:
        command("stop", "--grace", "0", short).check()


def test_a_started_machine_goes_by_name_and_keeps_its_size(template_name, tmp_path) -> None:
    start = ("start", "-t", template_name, "--name", "sized", "--require-isolation", "basic", "--wait", "30")
    vm_id = command(*start).check().out.strip()
    try:
        done = command("resize", "sized", "--cpus", "1")
        assert (done.status, "has clients" in done.err, "hint: vmfork start --cpus" in done.err) == (2, True, True)
        assert command("exec", "sized", "--", "echo", "--", "x").check().out == "-- x\n"
    finally:
        command("stop", "--grace", "0", "sized").check()
    made = json.loads(command("debug-bundle", "sized", "-o", str(tmp_path / "b.tar.gz"), "--json").check().out)
    assert "machine/console.log" in made["members"]
    assert "machine/record.json" in made["members"]
    assert vm_id not in ids()


def test_a_machine_of_one_owner_says_whose_it_is(template_name) -> None:
    with vmfork.Template.open(template_name).fork() as vm:
        for verb in (("exec", vm.id[:9], "true"), ("shell", vm.id[:9])):
            with AtTerminal(*COMMAND, *verb) as at:
                at.wait_for(f"process {os.getpid()}")
                assert at.end()[0] == 125
        with pytest.raises(StoreBusy, match=f"process {os.getpid()}"):
            vmfork.VM.connect(vm.id)


def test_run_left_running_is_named_labelled_and_ends_by_itself(template_name) -> None:
    named = ("--name", "left", "--label", "job=9", "--ttl", "1h", "--idle-ttl", "1h")
    vm_id = command("run", "-d", *named, "-t", template_name, "sleep", "1000").check().out.strip()
    try:
        (told,) = json.loads(command("ps", "--filter", "job=9", "--json").check().out)
        assert (told["id"], told["name"]) == (vm_id, "left")
    finally:
        command("stop", "--grace", "0", "left").check()
    refused = command("run", "--ttl", "1h", "-t", template_name, "true")
    assert (refused.status, "hint: add -d" in refused.err) == (125, True)


@pytest.mark.parametrize("argv", [("--require-isolation", "none-such"), ("--ttl", "0")], ids=" ".join)
def test_wrong_input_is_named_before_a_machine_is_made(template_name, argv) -> None:
    before = ids()
    done = command("run", "-d", "-t", template_name, *argv, "--", "true")
    assert (done.status, done.out) == (125, "")
    assert argv[0].strip("-").replace("-", "_") in done.err
    assert ids() == before


@pytest.mark.parametrize("by", [-1, 1])
@pytest.mark.parametrize("owned_by", ["broker", "nobody"])
def test_a_machine_of_another_vmfork_is_listed_refused_by_name_and_ended(template_name, owned_by, by) -> None:
    """As after an upgrade, or after the way back."""
    template = vmfork.Template.open(template_name)
    if owned_by == "broker":
        with template.start() as vm:
            vm_id = vm.id
    else:
        with template.fork() as vm:
            vm_id = vm.detach(ttl_s=600).id
    (told,) = [path for path in (find_places().vms / vm_id).glob("*.json") if "version" in json.loads(path.read_text())]
    record = json.loads(told.read_text())
    told.write_text(json.dumps(record | {"version": record["version"] + by}))
    try:
        assert vm_id in ids()
        assert json.loads(command("show", vm_id, "--json").check().out)["id"] == vm_id
        verb = ("exec", vm_id, "true") if owned_by == "broker" else ("resize", vm_id, "--cpus", "1")
        done = command(*verb)
        assert done.status in (2, 125)
        assert f"has version {record['version'] + by}, this vmfork takes {record['version']}" in done.err
        assert "vmfork stop" in done.err
    finally:
        assert command("stop", vm_id).check().out == f"{vm_id}\n"
    assert vm_id not in ids()
    assert not (find_places().vms / vm_id).exists()

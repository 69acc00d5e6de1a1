"""`vmfork debug-bundle` of a machine that runs: what a report needs is in it, and no secret that it was given."""

from __future__ import annotations

import json
import tarfile

import pytest

from tests.vm.cli_runner import vmfork

pytestmark = pytest.mark.vm

SECRET = "correct-horse-battery"


async def test_a_bundle_tells_of_the_machine_and_holds_nothing_it_was_given(template, tmp_path) -> None:
    given = {"env": {"API_KEY": SECRET}, "files": {"/root/key": SECRET}}
    out = tmp_path / "out.tar.gz"
    async with await template.fork(**given) as vm:
        assert (await vm.shell("cat /root/key; echo; echo $API_KEY", timeout_s=60)).stdout.split() == [SECRET] * 2
        told = json.loads(vmfork("debug-bundle", vm.id, "-o", str(out), "--json", env={"KEY": SECRET}).check().out)
        vm_id = vm.id
    with tarfile.open(out) as tar:
        members = {each.name: tar.extractfile(each).read() for each in tar}
    assert told["members"] == [*members]
    # A fork whose kernel has said nothing has no console's log.
    assert told["missing"] in ({}, {"machine/console.log": "nothing was written to it"})
    record = json.loads(members["machine/record.json"])
    assert (record["id"], record["template"]) == (vm_id, template.name)
    process = json.loads(members["machine/process.json"])
    assert process["alive"]
    assert "-machine" in process["argv"]
    assert 0 < process["private_bytes"] < process["resident_bytes"]
    assert json.loads(members["machine/template.json"])["generation"] == template.generation
    for name, data in members.items():
        assert SECRET.encode() not in data, name
        assert b"warm > /root/marker" not in data, name  # its warm-up is nobody's business either
    ended = json.loads(vmfork("debug-bundle", vm_id, "-o", str(out), "--json").check().out)
    assert "it has ended" in ended["missing"]["machine"]

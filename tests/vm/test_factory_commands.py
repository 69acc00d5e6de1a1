"""`vmfork factory` with real machines: what init says is so, and what status says."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess

import pytest

from tests.vm.cli_runner import COMMAND, Running, left_of, vmfork
from vmfork.aio import Template
from vmfork.errors import TemplateElsewhere

pytestmark = pytest.mark.vm


@pytest.fixture(autouse=True)
def nothing_is_left(instance):
    yield
    assert left_of(instance.runtime) == []


@pytest.fixture
def settings(instance):
    """A factory whose template is its own, removed in the end."""
    yield {"VMFORK_FACTORY_TEMPLATE": "true", "VMFORK_FACTORY_TEMPLATE_NAME": "own"}
    vmfork("template", "rm", "own")


@pytest.mark.parametrize("also", ["VMFORK_FACTORY_BUILD=background", "VMFORK_FACTORY_REMOTE=true"])
def test_init_says_ready_when_the_template_is(settings, also) -> None:
    """It said so, and exited with 0, when it had begun a build and cancelled it."""
    name, _, value = also.partition("=")
    done = vmfork("factory", "init", env={**settings, name: value}).check()
    assert "template own is ready" in done.out
    assert vmfork("factory", "status", env=settings).check().out.startswith("on: template own")


def test_init_looks_at_every_template_before_it_builds_one(settings) -> None:
    done = vmfork("factory", "init", env={**settings, "VMFORK_FACTORY_TEMPLATES": "absent"})
    assert done.status == 1
    assert "no template is named 'absent'" in done.err
    assert "booting" not in done.err


@pytest.mark.needs("namespaces")
def test_a_template_in_a_mount_namespace_of_its_own_is_named_and_left_alone(settings) -> None:
    """Its folder is empty for everybody else; `ensure` built another in its place, and the live one was gone."""
    script = '"$@" factory init && echo up && read line && "$@" template verify own'
    inside = ("unshare", "--mount", "sh", "-c", script, "sh", *COMMAND)
    with Running(command=inside, env=settings, stdin=subprocess.PIPE) as builder:
        builder.wait_for("up", fd=1)
        told = f"template 'own' is mounted in another mount namespace, that of process {builder.process.pid} (sh)"
        status = vmfork("factory", "status", env=settings)
        assert (status.status, told in status.out) == (3, True), status
        with pytest.raises(TemplateElsewhere, match=re.escape(told)):
            asyncio.run(Template.ensure("own"))
        assert "template own is whole" in builder.end(input=b"\n").check().out


def test_init_of_a_client_says_where_the_template_is_built() -> None:
    done = vmfork("factory", "init", env={"VMFORK_FACTORY_REMOTE": "true"})
    assert done.status == 2
    assert "no template to build" in done.err
    assert "run this where it serves" in done.err


def test_status_tells_what_becomes_of_requests_and_what_forks_save(settings) -> None:
    def status(**more) -> dict[str, object]:
        return json.loads(vmfork("factory", "status", "--json", env={**settings, **more}).check().out)

    vmfork("factory", "init", env=settings).check()
    alone = status()
    assert (alone["requests"], alone["differs"], alone["forks"], alone["memory_saved_bytes"]) == ("exact", [], 0, 0)
    for more, requests, differs in (
        ({"VMFORK_VM_KERNEL_ARGS": "quiet"}, "booted", ["kernel_args"]),
        ({"VMFORK_VM_RESEED": "none", "VMFORK_VM_ASLR": "on"}, "booted", ["reseed", "aslr"]),
        ({"VMFORK_VM_MEMORY_MIB": "320"}, "booted", ["memory_mib"]),
        ({"VMFORK_VM_MEMORY_MIB": "192"}, "refused", ["memory_mib"]),
        ({"VMFORK_VM_MEMORY_MIB": "192", "VMFORK_FACTORY_OVERSIZE": "allow"}, "larger", ["memory_mib"]),
    ):
        found = status(**more)
        assert (found["requests"], found["differs"]) == (requests, differs), more
    shown = vmfork("factory", "status", env={**settings, "VMFORK_VM_KERNEL_ARGS": "quiet"}).check().out
    assert "it differs from the configuration in kernel_args: such requests are booted" in shown
    program = ("sh", "-c", "cat /bin/* > /dev/null; echo up; read l")
    with (
        Running("run", "-t", "own", *program, stdin=subprocess.PIPE) as one,
        Running("run", "-t", "own", *program, stdin=subprocess.PIPE) as other,
    ):
        for fork in (one, other):
            fork.wait_for("up", fd=1)
        found = status()
        assert found["forks"] == 2
        assert found["memory_shared_bytes"] > found["memory_saved_bytes"] >= 0
        assert "forks alive: 2" in vmfork("factory", "status", env=settings).check().out
        for fork in (one, other):
            fork.end(input=b"\n").check()
    assert status()["forks"] == 0


def test_status_of_a_client_says_that_no_server_is_there(tmp_path) -> None:
    env = {"VMFORK_FACTORY_REMOTE": "true", "VMFORK_FACTORY_ENDPOINT": str(tmp_path / "none.sock")}
    done = vmfork("factory", "status", env=env)
    assert (done.status, done.out) == (3, f"off: no VM cache server is at {tmp_path}/none.sock\n")


def test_the_recipe_that_is_named_makes_the_template_and_another_makes_it_again(settings, tmp_path) -> None:
    recipe = tmp_path / "web.toml"
    named = {**settings, "VMFORK_FACTORY_RECIPE": str(recipe)}

    def mark() -> str:
        return vmfork("run", "cat", "/root/mark", env=named).check().out

    missing = vmfork("factory", "init", env=named)
    assert (missing.status, "web.toml" in missing.err, "booting" in missing.err) == (2, True, False)
    recipe.write_text('warm_up = ["echo one > /root/mark"]\nready = "test -e /root/mark"\n')
    vmfork("factory", "init", env=named).check()
    assert mark() == "one\n"
    recipe.write_text('warm_up = ["echo two > /root/mark"]\n')
    told = vmfork("factory", "status", "--json", env=named)
    assert (told.status, json.loads(told.out)["code"]) == (3, "template-stale")
    # A run makes it anew, as `factory init --ensure` does.
    assert mark() == "two\n"
    assert vmfork("factory", "status", env=named).check().out.startswith("on: template own")


def test_removing_a_template_tells_who_uses_it(settings) -> None:
    """A server that keeps machines of it ready, and a fork that another process has; both go on."""
    served = {**settings, "VMFORK_FACTORY_CACHE": "1"}
    with Running("factory", "init", env=served) as server:
        server.wait_for("serving at")
        with Running("run", "-t", "own", "sh", "-c", "echo up; cat", stdin=subprocess.PIPE) as forked:
            forked.wait_for("up", fd=1)
            done = vmfork("template", "rm", "own", "--json", env=served).check()
            told = json.loads(done.out)
            assert (told["removed"], told["server_pid"]) == (True, server.process.pid)
            owners = {fork["owner_pid"] for fork in told["forks"]}
            assert owners == {server.process.pid, forked.process.pid}
            assert forked.end(input=b"still here").check().out == "up\nstill here"
        assert vmfork("factory", "destroy", env=served).check().out.startswith("ended the VM cache server")


def test_a_server_can_log_lines_of_json_that_say_which_machine(settings) -> None:
    served = {**settings, "VMFORK_FACTORY_CACHE": "1"}
    with Running("factory", "init", "--log-format", "json", env=served) as server:
        server.wait_for("serving at")
        vmfork("run", "-t", "own", "true", env=served).check()
        vmfork("factory", "destroy", env=served).check()
        lines = [json.loads(line) for line in server.end().check().err.splitlines()]
    given = [line for line in lines if line.get("event") == "machine.detached"]
    assert [line["template"] for line in given] == ["own"]
    assert re.fullmatch(r"[0-9a-f]{12}", given[0]["vm_id"])
    phases = [line["message"].split()[0].rstrip(",") for line in lines if line.get("event") == "server.phase"]
    assert phases == ["starting", "serving", "draining"]


def test_the_error_that_ends_a_server_is_in_its_log(settings) -> None:
    served = {**settings, "VMFORK_FACTORY_CACHE": "60000"}
    done = vmfork("factory", "init", "--log-format", "json", "--json", env=served)
    assert done.status == 2
    assert json.loads(done.out)["error"]["code"] == "config"
    last = json.loads(done.err.splitlines()[-1])
    assert (last["event"], last["error"], last["level"]) == ("server.failed", "config", "error")
    assert all(json.loads(line)["logger"] for line in done.err.splitlines())

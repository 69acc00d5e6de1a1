"""Clients of a factory that others set up: they share its configuration, and need nothing that it is made of."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.vm.cli_runner import COMMAND, Running, environment, left_of, vmfork

pytestmark = pytest.mark.vm

LIMIT_S = 120
# What a client is handed says that it came from the server, in the size that the server's file asks for.
CLIENT = """
import json, vmfork
with vmfork.Factory() as factory, factory.get_vm(timeout_s=60) as vm:
    assert vm.exec(["true"], timeout_s=60).ok
    stats = factory.stats()
    print(json.dumps([vm.hardware.memory_mib, dict(stats.given), dict(stats.fallbacks)]))
"""


@pytest.fixture
def shared(instance, tmp_path):
    """A folder with the `vmfork.toml` that a server and its clients share; in the end nothing is left of them."""
    (tmp_path / "vmfork.toml").write_text(
        f'[vm]\nmemory_mib = 288\n[factory]\ntemplate = true\ntemplate_name = "shared"\ncache = 1\n'
        f'endpoint = "{tmp_path}/cache.sock"\n'
    )
    yield tmp_path
    for name in ("shared", "default-1c-288m"):
        vmfork("template", "rm", name)
    assert left_of(instance.runtime) == []


def run_client(cwd, **env) -> list[object]:
    done = subprocess.run(
        [sys.executable, "-c", CLIENT], cwd=cwd, env=environment(env), capture_output=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def run(cwd, *options: str, **env) -> dict[str, object]:
    """What `vmfork run --json` tells of a command that prints the size of its machine."""
    return json.loads(vmfork("run", "--json", *options, "nproc", cwd=cwd, env=env).check().out)


def test_who_shares_the_file_of_a_server_is_its_client(shared, tmp_path) -> None:
    """With `memory_mib` in the server's file the documented client booted each machine, and needed an image."""
    empty = tmp_path / "nothing"
    empty.mkdir()
    # Neither image nor emulator.
    bare = {"VMFORK_HOME": str(empty), "PATH": str(empty), "VMFORK_VM_QEMU": str(empty / "qemu")}
    with Running(command=(*COMMAND, "factory", "init", "--json"), cwd=shared) as server:
        server.wait_for('"serving"', fd=1)
        given = [288, {"remote cache of template 'shared'": 1}, {}]
        # The same file; and one that names the server and says nothing of machines.
        assert run_client(shared, **bare) == given
        (empty / "vmfork.toml").write_text(f'[factory]\nremote = true\nendpoint = "{shared}/cache.sock"\n')
        assert run_client(empty, **bare) == given
        # So is `vmfork run`, unless it is told not to.
        taken = run(shared, **bare)
        assert (taken["source"]["kind"], taken["source"]["made_from"]) == ("server", "template 'shared'")
        timed = vmfork("run", "--timings", "true", cwd=shared, env=bare).check().err
        assert "from    kept ready by the VM cache server of template 'shared'\n" in timed
        own = run(shared, "--no-factory")
        assert (own["source"]["kind"], own["source"]["made_from"]) == ("template", "template 'default-1c-288m'")
        vmfork("factory", "destroy", cwd=shared).check()
        server.end().check()
    assert list(empty.iterdir()) == [empty / "vmfork.toml"]
    # Where no server keeps the pool, a run forks the template itself; it is built where it may be.
    forked = run(shared)
    assert (forked["source"]["kind"], forked["source"]["made_from"]) == ("template", "template 'shared'")
    background = {"VMFORK_FACTORY_BUILD": "background", "VMFORK_FACTORY_TEMPLATE_NAME": "absent"}
    refused = vmfork("run", "true", cwd=shared, env=background)
    assert (refused.status, "no template is named 'absent'" in refused.err) == (125, True)
    grown = vmfork("run", "--memory", "300", "true", cwd=shared)
    assert grown.status == 0

"""What a test's machines are made of: the mark of the test, of its class, what the factory is given, and in that order.

By a run of pytest of its own, whose templates only tell what they were asked for: no machine is made.
"""

from __future__ import annotations

import os
import subprocess
import sys

CONFTEST = """
import pytest
from vmfork.testing import machines

class VM:
    id = "none"
    def __init__(self, template, given): self.template, self.given = template, given
    def run(self): raise AssertionError
    exec = run_code = start = stream = run
    def console_tail(self): return ""
    def close(self): pass

class Template:
    def __init__(self, name): self.name = name
    def fork(self, **given): return VM(self.name, given)
    open = classmethod(lambda cls, name: cls(name))

machines.Template = Template
asked = []

@pytest.fixture
def vm_template(request):
    asked.append(request.node.name)
    return Template("own")
"""
SUITE = """
import pytest
from conftest import asked

def test_bare(vm):
    assert (vm.template, vm.given, asked) == ("own", {}, ["test_bare"])

@pytest.mark.vmfork(cpus=2, memory_mib=512, network="none")
class TestMarked:
    def test_of_the_class(self, vm):
        assert (vm.template, vm.given) == ("own", {"cpus": 2, "memory_mib": 512, "network": "none"})

    @pytest.mark.vmfork(cpus=4, network="all", template="other")
    def test_nearest(self, vm):
        assert (vm.template, vm.given) == ("other", {"cpus": 4, "memory_mib": 512, "network": "all"})
        assert "test_nearest" not in asked  # it would be built for nothing

    def test_given(self, vm_factory):
        one, two = vm_factory(cpus=1, env={"A": "1"}), vm_factory(template="third")
        assert one.given == {"cpus": 1, "memory_mib": 512, "network": "none", "env": {"A": "1"}}
        assert (two.template, two.given) == ("third", {"cpus": 2, "memory_mib": 512, "network": "none"})

@pytest.mark.vmfork(cpu=2)
def test_misspelt(vm):
    pass

@pytest.mark.vmfork(2)
def test_by_place(vm):
    pass
"""


def test_the_nearest_mark_counts_and_what_is_given_counts_more_and_what_no_fork_has_is_named(tmp_path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_suite.py").write_text(SUITE)
    argv = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "vmfork.testing.plugin", "-c", os.devnull)
    env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*argv, f"--rootdir={tmp_path}", str(tmp_path)],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    said = done.stdout + done.stderr
    assert "4 passed, 2 errors" in said, said
    assert "the mark vmfork has no 'cpu': did you mean cpus? it takes template, env, files, cpus" in said
    assert "the mark vmfork takes its arguments by name" in said

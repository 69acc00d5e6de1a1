"""What a call over Ray carries: what a program defines itself goes along, and the rest is packed by Python itself."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from vmfork.machine.result import ExecResult

pytestmark = [pytest.mark.needs("ray")]

PROGRAM = """
import sys
from vmfork.cluster.ray_site import _pack
class Env(dict):
    def doubled(self):
        return {key: value * 2 for key, value in self.items()}
def make():
    class Inner(Env):
        pass
    return Inner(a="y")
sys.stdout.buffer.write(_pack(("exec", [Env(a="x"), make()])))
"""


def test_what_a_program_defines_itself_goes_along() -> None:
    """Its own module is another one where it is unpacked, and has none of it."""
    packed = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True).stdout
    verb, (one, inner) = pickle.loads(packed)
    assert (verb, one.doubled(), inner.doubled()) == ("exec", {"a": "xx"}, {"a": "yy"})


def test_what_is_anybodys_is_packed_by_python_and_what_looks_like_a_programs_comes_as_it_was() -> None:
    from vmfork.cluster.ray_site import _pack  # noqa: PLC0415 - Ray may be missing where tests are collected

    for told in (
        ("exec", ["true"], {"env": {"A": "b"}, "timeout_s": None}),
        (True, ExecResult(argv=("true",), exit_code=0, duration_s=0.1, stdout_bytes=b"out")),
    ):
        assert _pack(told) == pickle.dumps(told)
    said = (True, ExecResult(argv=("true",), exit_code=0, duration_s=0.1, stdout_bytes=b"__main__"))
    assert pickle.loads(_pack(said)) == said

"""What a result shows of itself, where a test fails or at a prompt."""

from __future__ import annotations

from vmfork.machine.result import ExecResult


def test_a_result_shows_the_beginning_of_its_output() -> None:
    result = ExecResult(
        argv=("make",), exit_code=2, duration_s=0.5, stdout_bytes=b"cc -c a.c\n" * 100, stderr_bytes=b"error: \xff"
    )
    shown = repr(result)
    assert "argv=('make',), exit_code=2" in shown
    assert r"stdout='cc -c a.c\ncc -c" in shown
    assert "…" in shown
    assert "stderr='error: \ufffd'" in shown
    assert len(shown) < 500
    assert "stdout" not in repr(ExecResult(argv=("true",), exit_code=0, duration_s=0.5))

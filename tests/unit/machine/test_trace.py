"""Timelines as spans: only where OpenTelemetry's SDK is loaded, one child for each phase, end to end."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.recorded_spans import record_spans
from vmfork.machine import trace
from vmfork.machine.timings import Timings

TIMINGS = Timings(spawn_s=0.002, answer_s=0.05, load_s=0.04, adopt_s=0.01, clock_s=0.003, thaw_s=0.0, total_s=0.055)


@pytest.fixture
def spans():
    """What was traced so far."""
    return record_spans()


def test_a_machine_is_a_span_with_its_phases_end_to_end(spans):
    trace.trace_machine("vmfork.fork", TIMINGS, {"vmfork.vm": "abc"})
    *phases, whole = spans()
    assert whole.name == "vmfork.fork"
    assert whole.attributes["vmfork.vm"] == "abc"
    assert [span.name for span in phases] == ["spawn", "load", "adopt", "clock"]
    assert {span.parent.span_id for span in phases} == {whole.context.span_id}
    assert phases[0].start_time == whole.start_time
    assert [span.end_time for span in phases[:-1]] == [span.start_time for span in phases[1:]]
    assert whole.end_time - whole.start_time == 55_000_000


def test_a_program_is_a_span_of_its_own(spans):
    trace.trace_program("true", 0.01, 3)
    (span,) = spans()
    assert (span.name, span.attributes["vmfork.exit_code"]) == ("vmfork.exec", 3)
    assert span.end_time - span.start_time == 10_000_000


def test_a_failure_ends_its_span_with_the_error(spans):
    with pytest.raises(ValueError, match="no"), trace.failure_traced("vmfork.fork", {}):
        raise ValueError("no")
    (span,) = spans()
    assert not span.status.is_ok
    assert span.events[0].name == "exception"


def test_details_are_wanted_inside_the_block_only(monkeypatch):
    monkeypatch.setattr(trace, "is_traced", lambda: False)
    assert not trace.is_detailed()
    with trace.detailed_timings():
        assert trace.is_detailed()
    assert not trace.is_detailed()


def test_without_the_sdk_nothing_of_it_is_loaded_and_nothing_happens():
    code = (
        "import sys\n"
        "from vmfork.machine import trace\n"
        "from vmfork.machine.timings import Timings\n"
        "trace.trace_program('true', 0.1, 0)\n"
        "trace.trace_machine('x', Timings(spawn_s=1, answer_s=1, clock_s=1, thaw_s=1, total_s=4), {})\n"
        "assert not trace.is_detailed()\n"
        "assert [name for name in sys.modules if name.startswith('opentelemetry')] == []\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_spans_of_another_process_belong_to_the_one_that_was_carried_there(spans):
    api = sys.modules["opentelemetry.trace"]
    with api.get_tracer("caller").start_as_current_span("caller") as caller:
        carried = trace.carry()
    assert {type(value) for value in carried.values()} == {str}
    with trace.continued(carried):
        trace.trace_program("true", 0.01, 0)
    trace.trace_program("false", 0.01, 1)
    inside, outside = (each for each in spans() if each.name == "vmfork.exec")
    assert inside.parent.span_id == caller.get_span_context().span_id
    assert inside.context.trace_id == caller.get_span_context().trace_id
    assert outside.parent is None


@pytest.mark.parametrize(
    ("traceparent", "is_one"),
    [
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", True),
        ("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-of a later version", True),
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more", False),
        ("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", False),
        ("00-00000000000000000000000000000000-b7ad6b7169203331-01", False),
        ("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", False),
        ("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", False),
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331", False),
        ("00-nonsense-x-01", False),
        ("", False),
    ],
)
def test_what_is_no_traceparent_is_no_span(spans, traceparent, is_one):
    with trace.continued({"traceparent": traceparent, "other": "x"}):
        trace.trace_program("true", 0.01, 0)
    (span,) = spans()
    assert (span.parent is not None) is is_one


def test_what_says_nothing_of_a_trace_is_no_span(spans):
    with trace.continued({"other": "x"}):
        trace.trace_program("true", 0.01, 0)
    (span,) = spans()
    assert span.parent is None


def test_where_nothing_is_traced_nothing_is_carried(monkeypatch):
    monkeypatch.setattr(trace, "is_traced", lambda: False)
    assert trace.carry() == {}
    with trace.continued({"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}):
        pass

"""Every fork can tell where its time went, and the parts make the whole."""

from __future__ import annotations

import importlib

import pytest

from tests.recorded_spans import record_spans
from tests.vm.cli_runner import vmfork
from vmfork.aio import detailed_timings
from vmfork.machine import trace

pytestmark = [pytest.mark.vm, pytest.mark.kvm]


async def test_a_fork_tells_its_phases_apart_where_that_is_wanted(template):
    with detailed_timings():
        vm = await template.fork()
    async with vm:
        told = vm.timings
        assert min(told.spawn_s, told.load_s, told.adopt_s, told.clock_s) > 0
        assert told.load_s + told.adopt_s == pytest.approx(told.answer_s)
        parts = told.spawn_s + told.answer_s + told.clock_s + told.thaw_s
        assert parts == pytest.approx(told.total_s)
        assert told.first_exec_s == 0
        await vm.exec(["true"])
        first = vm.timings.first_exec_s
        assert first > 0
        await vm.exec(["true"])
        assert vm.timings.first_exec_s == first


async def test_otherwise_no_round_trip_is_spent_on_it(template, monkeypatch):
    monkeypatch.setattr(trace, "is_traced", lambda: False)  # another test may have loaded the SDK
    async with await template.fork() as vm:
        assert vm.timings.answer_s > 0
        assert (vm.timings.load_s, vm.timings.adopt_s) == (0, 0)


async def test_a_tracer_sees_the_fork_and_its_program(template):
    spans_so_far = record_spans()
    api = importlib.import_module("opentelemetry.trace")
    with api.get_tracer("test").start_as_current_span("request") as request:
        async with await template.fork() as vm:
            await vm.exec(["true"])
    spans = {span.name: span for span in spans_so_far()}
    assert {"spawn", "load", "adopt", "clock", "vmfork.fork", "vmfork.exec"} <= set(spans)
    for name in ("vmfork.fork", "vmfork.exec"):
        assert spans[name].parent.span_id == request.get_span_context().span_id
    assert spans["vmfork.fork"].attributes["vmfork.vm"] == vm.id


def test_run_tells_it_on_standard_error(template_name):
    done = vmfork("run", "-t", template_name, "--timings", "--", "echo", "hello").check()
    assert done.out == "hello\n"
    assert done.err.startswith(f"from    forked from template {template_name!r}\n")
    assert [line.split()[0] for line in done.err.splitlines()] == [
        "from", "spawn", "load", "adopt", "clock", "thaw", "fork", "program",
    ]  # fmt: skip

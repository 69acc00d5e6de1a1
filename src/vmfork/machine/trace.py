"""Where the time of a machine goes, for OpenTelemetry. A process that has not loaded its SDK pays nothing for it.

```
vmfork.fork | vmfork.boot | vmfork.take      one machine, until it is handed out; an error ends it
    spawn  load  adopt  clock  thaw  fit     its phases, one after the other (see `Timings`)
vmfork.exec                                  one program
```
The spans belong to the span that is current where the machine is asked for, be that in another process: `carry` there,
`continued` here.
"""

from __future__ import annotations

import re
import sys
import time
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vmfork.machine.timings import Timings

_PHASES = ("spawn_s", "load_s", "adopt_s", "clock_s", "thaw_s", "fit_s")
# What comes from elsewhere may say anything. An id of zeroes is none.
_TRACEPARENT = re.compile("([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_wanted: ContextVar[bool] = ContextVar("vmfork_detailed_timings", default=False)


@contextmanager
def detailed_timings() -> Iterator[None]:
    """Machines made inside the block tell `load_s` and `adopt_s` apart. Each pays a round trip to its guest, 1 ms.

    Where OpenTelemetry traces, all machines do.
    """
    token = _wanted.set(True)
    try:
        yield
    finally:
        _wanted.reset(token)


def is_detailed() -> bool:
    """Whether a machine that is made here tells its phases apart."""
    return _wanted.get() or is_traced()


def is_traced() -> bool:
    """Whether this process loaded OpenTelemetry's SDK. vmfork never does; without it spans go nowhere."""
    return "opentelemetry.sdk.trace" in sys.modules


def trace_machine(name: str, timings: Timings, attributes: Mapping[str, Any]) -> None:
    """A span for a machine that was just handed out, with one for each phase that took time."""
    if not is_traced():
        return
    end_ns = time.time_ns()
    at_ns = end_ns - _ns(timings.total_s)
    tracer, api = _tracer()
    span = tracer.start_span(name, start_time=at_ns, attributes=attributes)
    inside = api.set_span_in_context(span)
    for phase in _PHASES:
        took_ns = _ns(getattr(timings, phase))
        if took_ns:
            child = tracer.start_span(phase.removesuffix("_s"), context=inside, start_time=at_ns)
            at_ns += took_ns
            child.end(at_ns)
    span.end(end_ns)


def trace_program(argv0: str, took_s: float, exit_code: int) -> None:
    """A span for a program that has just ended."""
    if is_traced():
        end_ns = time.time_ns()
        attributes = {"vmfork.program": argv0, "vmfork.exit_code": exit_code}
        tracer, _ = _tracer()
        tracer.start_span("vmfork.exec", start_time=end_ns - _ns(took_s), attributes=attributes).end(end_ns)


@contextmanager
def failure_traced(name: str, attributes: Mapping[str, Any]) -> Iterator[None]:
    """An error raised inside the block is a span that ends with it."""
    begun_ns = time.time_ns()
    try:
        yield
    except Exception as error:
        if is_traced():
            tracer, api = _tracer()
            span = tracer.start_span(name, start_time=begun_ns, attributes=attributes)
            span.record_exception(error)
            span.set_status(api.StatusCode.ERROR, str(error))
            span.end()
        raise


def carry() -> dict[str, str]:
    """The current span, as `continued` takes it in another process. Empty where there is none, or nothing is traced.

    `traceparent` is written as W3C's Trace Context, level 1, has it.
    """
    if not is_traced():
        return {}
    _, api = _tracer()
    span = api.get_current_span().get_span_context()
    told = f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"
    return {"traceparent": told} if span.is_valid else {}


@contextmanager
def continued(carried: Mapping[str, str]) -> Iterator[None]:
    """Spans of the block belong to the span that was carried here, where both processes trace.

    What is no `traceparent` is none: whoever wrote it loses its trace, and no more.
    """
    told = _read(carried) if carried and is_traced() else None
    if told is None:
        yield
        return
    _, api = _tracer()
    context: Any = sys.modules["opentelemetry.context"]  # what there is of spans is in it
    trace_id, span_id, flags = told
    span = api.SpanContext(trace_id, span_id, is_remote=True, trace_flags=api.TraceFlags(flags))
    token = context.attach(api.set_span_in_context(api.NonRecordingSpan(span)))
    try:
        yield
    finally:
        context.detach(token)


def _read(carried: Mapping[str, str]) -> tuple[int, int, int] | None:
    """Trace, span and flags. A version that is not ours yet begins as ours does (Trace Context, 4.3); `ff` is none."""
    found = _TRACEPARENT.fullmatch(carried.get("traceparent", ""))
    if found is None or found[1] == "ff" or (found[1] == "00" and found[5]):
        return None
    trace_id, span_id, flags = (int(found[part], 16) for part in (2, 3, 4))
    return (trace_id, span_id, flags) if trace_id and span_id else None


def _tracer() -> tuple[Any, Any]:
    api: Any = sys.modules["opentelemetry.trace"]  # the SDK has loaded it
    return api.get_tracer("vmfork"), api


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)

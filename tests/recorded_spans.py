"""What OpenTelemetry was told, kept in memory. Without its SDK, a named skip."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from tests.rules.capabilities import need


def record_spans() -> Callable[[], Sequence[Any]]:
    """Gives the spans that ended since then."""
    need("opentelemetry")
    names = ("sdk.trace", "trace", "sdk.trace.export", "sdk.trace.export.in_memory_span_exporter")
    sdk, api, export, memory = (importlib.import_module(f"opentelemetry.{name}") for name in names)
    if not isinstance(api.get_tracer_provider(), sdk.TracerProvider):  # it can be set once in a process
        api.set_tracer_provider(sdk.TracerProvider())
    exporter = memory.InMemorySpanExporter()
    api.get_tracer_provider().add_span_processor(export.SimpleSpanProcessor(exporter))
    return exporter.get_finished_spans

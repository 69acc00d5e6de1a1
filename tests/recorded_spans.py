"""What OpenTelemetry was told, kept in memory. Without its SDK, a named skip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest


def record_spans() -> Callable[[], Sequence[Any]]:
    """Gives the spans that ended since then."""
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    api = pytest.importorskip("opentelemetry.trace")
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    if not isinstance(api.get_tracer_provider(), sdk.TracerProvider):  # it can be set once in a process
        api.set_tracer_provider(sdk.TracerProvider())
    exporter = memory.InMemorySpanExporter()
    api.get_tracer_provider().add_span_processor(export.SimpleSpanProcessor(exporter))
    return exporter.get_finished_spans

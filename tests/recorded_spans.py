"""What OpenTelemetry was told: kept in memory, or of other processes in a file. Without its SDK, a named skip."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.rules.capabilities import need

_TRACING = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

def tell(span):
    return f"{span.name} {span.context.trace_id:032x}\\n"

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(out=open(%r, "a"), formatter=tell)))
trace.set_tracer_provider(provider)
"""


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


def trace_processes(folder: Path) -> dict[str, str]:
    """The environment of a Python that tells its spans, once they end, to `read_told` of the same folder."""
    (folder / "sitecustomize.py").write_text(_TRACING % str(folder / "told"))
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(folder), os.getcwd(), os.environ.get("PYTHONPATH"))))}


def read_told(folder: Path) -> set[tuple[str, str]]:
    """Name and trace of each span so far."""
    lines = (folder / "told").read_text().splitlines()
    return {(name, trace_id) for name, trace_id in (line.split() for line in lines)}

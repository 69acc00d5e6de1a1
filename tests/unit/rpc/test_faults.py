"""Errors on the wire, against the table in the module's own words."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from vmfork import errors
from vmfork.rpc import faults

SAMPLES = {
    "Closed": errors.Closed("pool"),
    "DeadlineExceeded": errors.DeadlineExceeded("waiting", 2),
    "StoreBusy": errors.StoreBusy("it"),
    "ConfigError": errors.ConfigError("vm.cpus", 0, "none"),
    "TemplateStale": errors.TemplateStale("t", "f", 1, 2),
    "other VMForkErrors": errors.LaunchError("no luck", hint="länger warten"),
    "anything else": ValueError("x"),
}


def read_table() -> list[list[str]]:
    lines = (faults.__doc__ or "").split("```")[1].strip().splitlines()[1:]
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    return [line for line in cells if line[0] in SAMPLES]


def rebuilt(error: Exception) -> errors.VMForkError:
    status, message, trailers = faults.to_status(error)
    told = grpc.aio.AioRpcError(status, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), details=message)
    return faults.from_status(told, operation="taking", limit_s=2, endpoint=Path("/x"))


def test_the_table_has_every_sample() -> None:
    assert [line[0] for line in read_table()] == list(SAMPLES)


@pytest.mark.parametrize("line", read_table(), ids=lambda line: line[0])
def test_the_table_is_what_happens(line) -> None:
    raised, status, code, met = line
    told, _, trailers = faults.to_status(SAMPLES[raised])
    assert told.name == status
    if code != "theirs":
        assert dict(trailers)[faults.CODE_KEY] == code
    assert type(rebuilt(SAMPLES[raised])).__name__ == met


def test_message_and_hint_arrive() -> None:
    error = rebuilt(SAMPLES["other VMForkErrors"])
    assert "no luck" in error.message
    assert error.hint == "länger warten"


@pytest.mark.parametrize(
    ("status", "kind", "told"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.HostError, "no VM cache server answers at /x"),
        (grpc.StatusCode.CANCELLED, errors.Closed, "it is ending"),
        (grpc.StatusCode.UNIMPLEMENTED, errors.HostError, "UNIMPLEMENTED"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded, "longer than 2 s"),
    ],
)
def test_what_grpc_says_by_itself(status, kind, told) -> None:
    bare = grpc.aio.AioRpcError(status, grpc.aio.Metadata(), grpc.aio.Metadata(), details="Socket closed")
    error = faults.from_status(bare, operation="taking", limit_s=2, endpoint=Path("/x"))
    assert type(error) is kind
    assert told in error.message

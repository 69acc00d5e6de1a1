"""Errors on the wire: a gRPC status with our own code and hint beside it, and the way back.

```
raised in the server     status               vmfork-code         raised in the client
Closed                   UNAVAILABLE          closed              Closed
DeadlineExceeded         DEADLINE_EXCEEDED    deadline            DeadlineExceeded
StoreBusy                ABORTED              busy                HostError
ConfigError              INVALID_ARGUMENT     config              HostError
TemplateStale            FAILED_PRECONDITION  template-stale      OtherKind
other VMForkErrors       FAILED_PRECONDITION  theirs              HostError
anything else            INTERNAL             internal            HostError
the server's end         CANCELLED            -                   Closed
nobody listens, broken   UNAVAILABLE          -                   HostError
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from vmfork.errors import Closed, ConfigError, DeadlineExceeded, HostError, StoreBusy, TemplateStale, VMForkError
from vmfork.rpc.errors import OtherKind

if TYPE_CHECKING:
    from pathlib import Path

CODE_KEY = "vmfork-code"
HINT_KEY = "vmfork-hint-bin"  # gRPC carries bytes beyond ASCII only under a name that ends so


_STATUS = {
    Closed: grpc.StatusCode.UNAVAILABLE,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    StoreBusy: grpc.StatusCode.ABORTED,
    ConfigError: grpc.StatusCode.INVALID_ARGUMENT,
    VMForkError: grpc.StatusCode.FAILED_PRECONDITION,
}


def to_status(error: Exception) -> tuple[grpc.StatusCode, str, tuple[tuple[str, str | bytes], ...]]:
    """Status, message and trailing metadata that tell `error`."""
    if not isinstance(error, VMForkError):
        return grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}", ((CODE_KEY, "internal"),)
    status = next(status for kind, status in _STATUS.items() if isinstance(error, kind))
    trailers: tuple[tuple[str, str | bytes], ...] = ((CODE_KEY, error.code),)
    if error.hint:
        trailers += ((HINT_KEY, error.hint.encode()),)
    return status, error.message, trailers


def from_status(error: grpc.aio.AioRpcError, *, operation: str, limit_s: float, endpoint: Path) -> VMForkError:
    """The error to raise for a call that failed: `operation` says what was asked, `limit_s` how long it could take."""
    trailers = dict(error.trailing_metadata() or ())
    code, hint = trailers.get(CODE_KEY, ""), trailers.get(HINT_KEY, b"").decode(errors="replace")
    # gRPC answers CANCELLED by itself to calls that reached a server which stopped before it looked at them.
    if code == Closed.code or error.code() is grpc.StatusCode.CANCELLED:
        return Closed("the VM cache server", "it is ending")
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(operation, limit_s, hint=hint or "see what the server does: vmfork factory status")
    if code:
        kind = OtherKind if code == TemplateStale.code else HostError
        return kind(f"the VM cache server at {endpoint} answered: {error.details()}", hint=hint)
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return HostError(
            f"no VM cache server answers at {endpoint}: {error.details()}", hint="start one: vmfork factory init"
        )
    return HostError(
        f"the VM cache server at {endpoint} failed: {error.code().name}: {error.details()}",
        hint="is it another version? compare: vmfork factory status --json",
    )

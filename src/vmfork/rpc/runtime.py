"""gRPC's runtime in this process: begun at the first use, and never ended.

Left alone, it ends with its last channel, server or call, wherever the collector meets that. Its end races with its
own thread (grpc/grpc #43364) and has aborted the process (grpcio 1.85.3). So one use is never given back. In a child
that is forked from there gRPC's thread is missing, and no call would end, whatever its deadline: it is refused.
"""

from __future__ import annotations

import os

import grpc

from vmfork.errors import WrongContext

_begun_in: int | None = None


def hold_runtime() -> None:
    """gRPC can be used, on the event loop that runs here.

    Raises `WrongContext` in a child that was forked from a process that used it.
    """
    global _begun_in  # noqa: PLW0603 - there is one runtime in a process
    if _begun_in is None:
        grpc.aio.init_grpc_aio()
        _begun_in = os.getpid()
    elif _begun_in != os.getpid():
        raise WrongContext(
            "gRPC",
            f"was used by process {_begun_in}, and this is a child that was forked from it: it would wait for ever",
            hint="start the child anew: multiprocessing.set_start_method('spawn'), or use it in children only",
        )

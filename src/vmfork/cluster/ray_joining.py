"""How a program joins a Ray cluster, or has one started: within a time, whatever answers at the address, or nobody.

Ray itself tries an address at which nobody answers for a quarter of an hour, and hears of no cancel meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import ray
from ray._private import services

from vmfork.cluster.ray_site import NAMESPACE, RaySite
from vmfork.errors import ConfigError, HostError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

T = TypeVar("T")

_beginning = threading.Lock()

# A host that is there answers, or refuses, at once.
_ANSWER_LIMIT_S = 5.0
# Ray gives up a cluster that lets it not in after 20 s.
_JOIN_LIMIT_S = 60.0
# What passes through it is a layer for each processor; by default Ray takes a third of the memory.
_LOCAL_STORE_BYTES = 512 << 20
_START = "start one (ray start --head), give its address, or use Cluster.local()"
_LET_IN = "where its nodes ask for a token, set RAY_AUTH_MODE=token, and have theirs in ~/.ray/auth_token"


async def open_site(address: str) -> RaySite:
    """The cluster at `address`; with `local`, one that is started here, and ends with it.

    Raises `ConfigError` for what is no address, and `HostError` where no cluster can be joined there, within a minute.
    """
    if ray.is_initialized():
        await _check_same(address)
        return RaySite()
    options = {"address": address, "namespace": NAMESPACE, "log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        begun = await _start(**options, include_dashboard=False, object_store_memory=_LOCAL_STORE_BYTES)
    else:
        await _check_answer(address)
        begun = await _join(**options)
    return RaySite(owns_ray=begun)


def _begin(options: Mapping[str, Any]) -> bool:
    """This process is in a cluster; whether that was done here, and not by another thread meanwhile."""
    if not _beginning.acquire(timeout=_JOIN_LIMIT_S):
        raise HostError("another thread of this process is joining a cluster", hint="try again when it has")
    try:
        if ray.is_initialized():
            return False
        ray.init(**options)
        return True
    finally:
        _beginning.release()


async def _check_same(address: str) -> None:
    """Raises `HostError` where another cluster is meant than this process is in: it can be in one alone."""
    here = str(ray.get_runtime_context().gcs_address)
    if address not in ("auto", here) and (address == "local" or await _find(address) != here):
        hint = "use that (vmfork.Cluster.connect()), or leave it first: ray.shutdown()"
        raise HostError(f"this process is in the Ray cluster at {here} already", hint=hint)


async def _start(**options: Any) -> bool:
    """Whoever gives up waits until what was begun has ended."""
    starting = asyncio.ensure_future(asyncio.to_thread(_begin, options))
    try:
        with _as_ours(options["address"], _START):
            return await asyncio.shield(starting)
    except asyncio.CancelledError:
        with suppress(Exception):
            if await starting:
                await asyncio.to_thread(ray.shutdown)
        raise


async def _check_answer(address: str) -> None:
    """Somebody answers there. Raises `ConfigError` and `HostError`."""
    if "://" in address:
        hint = "run the program on a host of the cluster, and give HOST:PORT"
        raise ConfigError("address", address, "Ray's own clients are none of its cluster", hint=hint)
    host, _, port = (await _find(address)).rpartition(":")
    try:
        number = int(port)
    except ValueError as error:
        raise _no_address(address) from error
    try:
        async with asyncio.timeout(_ANSWER_LIMIT_S):
            _, writer = await asyncio.open_connection(host.strip("[]"), number)
    except (OSError, OverflowError) as error:
        code, told = getattr(error, "errno", None) or 0, getattr(error, "strerror", None)
        why = os.strerror(code) if code > 0 else told or "in time"  # asyncio's own text has the address once more
        raise _no_cluster(address, f"nobody answers there ({why})", _START) from error
    writer.close()


async def _find(address: str) -> str:
    """Host and port, as Ray finds them."""
    try:
        with _as_ours(address, _START):
            return str(await _aside(lambda: services.canonicalize_bootstrap_address(address)))
    except ValueError as error:
        raise _no_address(address) from error


def _no_address(address: str) -> ConfigError:
    return ConfigError("address", address, f"{address!r} is no address", hint="HOST:PORT, or auto")


async def _join(**options: Any) -> bool:
    address, gave_up = options["address"], threading.Event()

    def join() -> bool:
        begun = _begin(options)
        if begun and gave_up.is_set():
            ray.shutdown()
        return begun

    try:
        with _as_ours(address, _LET_IN):
            async with asyncio.timeout(_JOIN_LIMIT_S):
                return await _aside(join)
    except TimeoutError as error:
        raise _no_cluster(address, f"what answers there let nobody in for {_JOIN_LIMIT_S:g} s", _LET_IN) from error
    finally:
        gave_up.set()


async def _aside(work: Callable[[], T]) -> T:
    """What `work` gives. It hears of no cancel: whoever gives up leaves it behind, and so does the program's end."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            tell = partial(done.set_result, work())
        except BaseException as error:  # noqa: BLE001 - whoever waits has it
            tell = partial(done.set_exception, error)
        with suppress(InvalidStateError):  # nobody waits any more
            tell()

    threading.Thread(target=run, name="vmfork-ray", daemon=True).start()
    return await asyncio.wrap_future(done)


@contextmanager
def _as_ours(address: str, hint: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "connect to GCS" in str(error):
            raise _no_cluster(address, "nobody answers there", hint) from error
        if "ersion mismatch" not in str(error):
            raise
        told = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
        raise HostError(
            f"the Ray cluster at {address} is not for this Python: {told}",
            hint="run the same versions of Python and Ray as its nodes do",
        ) from error
    except ConnectionError as error:
        raise _no_cluster(address, str(error), hint) from error


def _no_cluster(address: str, why: str, hint: str) -> HostError:
    return HostError(f"no Ray cluster runs at {address}: {why}", hint=hint)

"""How a program joins a Ray cluster, or has one started: within a time, whatever answers at the address, or nobody.

Ray itself tries an address at which nobody answers for a quarter of an hour, and hears of no cancel meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from concurrent.futures import Future, InvalidStateError
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import ray
from ray._private import services

from vmfork.cluster.ray_site import NAMESPACE, RaySite
from vmfork.errors import ConfigError, HostError
from vmfork.host.thread import in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

T = TypeVar("T")

_beginning = threading.Lock()

# A host that is there answers, or refuses, at once.
_ANSWER_LIMIT_S = 5.0
# Ray gives up a cluster that lets it not in after 20 s.
_JOIN_LIMIT_S = 60.0
# So long one thread waits for another that is joining.
_TURN_LIMIT_S = 30.0
# What passes through it is a layer for each processor; by default Ray takes a third of the memory.
_LOCAL_STORE_BYTES = 512 << 20
_START = "start one (ray start --head), give its address, or use Cluster.local()"
_LET_IN = "where its nodes ask for a token, set RAY_AUTH_MODE=token, and have theirs in ~/.ray/auth_token"


async def open_site(address: str) -> RaySite:
    """The cluster at `address`; with `local`, one that is started here, and ends with it.

    Raises `ConfigError` for what is no address, and `HostError` where no cluster can be joined there, within a minute.
    """
    options = {"address": address, "namespace": NAMESPACE, "log_to_driver": False, "logging_level": logging.ERROR}
    if ray.is_initialized():
        is_ours = False
    elif address == "local":
        is_ours = await _start(**options, include_dashboard=False, object_store_memory=_LOCAL_STORE_BYTES)
    else:
        await _check_answer(address)
        is_ours = await _join(**options)
    if not is_ours:
        await _check_same(address)
    return RaySite(owns_ray=is_ours)


class _Wish:
    """Whether a cluster that is being joined is still wanted. Of `begin` and `give_up` the first is heard by both."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_given_up = self._has_begun = False

    def begin(self) -> bool:
        """It is joined. False where nobody wants it any more: whoever joined it leaves it."""
        with self._lock:
            self._has_begun = not self._is_given_up
            return self._has_begun

    def give_up(self) -> bool:
        """It is wanted no more. True where it was joined before: whoever gives up leaves it."""
        with self._lock:
            self._is_given_up = True
            return self._has_begun


def _begin(options: Mapping[str, Any], wish: _Wish) -> bool:
    """This process is in a cluster; whether that was done here, and not by another thread meanwhile."""
    if not _beginning.acquire(timeout=_TURN_LIMIT_S):
        raise HostError("another thread of this process is joining a cluster", hint="try again when it has")
    try:
        if ray.is_initialized():
            return False
        ray.init(**options)
        if not wish.begin():
            ray.shutdown()
        return True
    finally:
        _beginning.release()


@asynccontextmanager
async def _wanting(address: str, hint: str) -> AsyncIterator[_Wish]:
    """What was joined in the block is left where that ends by an error, or a cancel."""
    wish = _Wish()
    try:
        with _as_ours(address, hint):
            yield wish
    except BaseException:
        if wish.give_up():
            await in_thread(lambda _: ray.shutdown())
        raise


async def _start(**options: Any) -> bool:
    """Whoever gives up waits until what was begun has ended."""
    async with _wanting(options["address"], _START) as wish:
        return await in_thread(lambda _: _begin(options, wish), interrupt=wish.give_up)


async def _check_same(address: str) -> None:
    """Raises `HostError` where another cluster is meant than this process is in: it can be in one alone."""
    here = str(ray.get_runtime_context().gcs_address)
    if address == "auto" or (address != "local" and await _aside(lambda: _leads_to(address, here))):
        return
    hint = "use that (vmfork.Cluster.connect()), or leave it first: ray.shutdown()"
    raise HostError(f"this process is in the Ray cluster at {here} already", hint=hint)


def _leads_to(address: str, here: str) -> bool:
    """Whether both are one, by whatever name."""
    try:
        ways = {address, services.canonicalize_bootstrap_address(address)}
        return any(_resolve(here) & _resolve(way) for way in ways if way)
    except (ValueError, OSError):
        return False


def _resolve(address: str) -> set[tuple[object, ...]]:
    host, _, port = address.rpartition(":")
    return {found[4][:2] for found in socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)}


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
    except TimeoutError as error:
        raise _no_cluster(address, f"nobody answers there within {_ANSWER_LIMIT_S:g} s", _START) from error
    except ValueError as error:  # no name of a host
        raise _no_address(address) from error
    except (OSError, OverflowError) as error:
        code, told = getattr(error, "errno", None) or 0, getattr(error, "strerror", None)
        why = os.strerror(code) if code > 0 else told or error  # asyncio's own text has the address once more
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
    address = options["address"]
    async with _wanting(address, _LET_IN) as wish:
        try:
            async with asyncio.timeout(_JOIN_LIMIT_S):
                return await _aside(lambda: _begin(options, wish))
        except TimeoutError as error:
            why = f"what answers there let nobody in for {_JOIN_LIMIT_S:g} s"
            raise _no_cluster(address, why, _LET_IN) from error


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

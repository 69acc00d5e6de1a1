"""A cache server, or one of its clients, that can be made to die at one step of a hand-over: run as a program.

`cache_actor.py serve STEP|-`           `vmfork factory init`, killed by itself at that step of its first hand-over
`cache_actor.py take STEP|- ENDPOINT TTL`   takes one machine, prints its id and pid, is killed by itself at that step
`cache_actor.py many COUNT ENDPOINT`    takes so many through a factory, runs `true` in each; a JSON line for each
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import signal
import sys
import time
from pathlib import Path

from vmfork.aio import VM, Factory
from vmfork.config import FactoryConfig
from vmfork.host.keeper import KeptProcess
from vmfork.machine.base import BaseVM
from vmfork.machine.folder import VMFolder
from vmfork.machine.handle import VMHandle

# Where a process can die: before or after what call.
SERVER_STEPS = {
    "before": (BaseVM, "detach", "before"),
    "handle-written": (KeptProcess, "park", "before"),
    "parked": (KeptProcess, "park", "after"),
    "released": (BaseVM, "detach", "after"),
}
CLIENT_STEPS = {
    "answered": (BaseVM, "attach", "before"),
    "taken": (KeptProcess, "confirm", "before"),
    "confirmed": (KeptProcess, "confirm", "after"),
    "owner-told": (VMFolder, "remove_handle", "after"),
    "attached": (BaseVM, "adopt", "before"),
    "adopted": (BaseVM, "adopt", "after"),
}


def die_at(owner: type, name: str, when: str) -> None:
    """The process is killed before or after the first call of that method."""
    raw = owner.__dict__[name]
    call = raw.__func__ if isinstance(raw, classmethod) else raw

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if asyncio.iscoroutinefunction(call):

        @functools.wraps(call)
        async def deadly(*args, **options):
            if when == "before":
                die()
            result = await call(*args, **options)
            die()
            return result
    else:

        @functools.wraps(call)
        def deadly(*args, **options):
            if when == "before":
                die()
            result = call(*args, **options)
            die()
            return result

    setattr(owner, name, classmethod(deadly) if isinstance(raw, classmethod) else deadly)


async def take(endpoint: str, ttl_s: float) -> None:
    from vmfork.rpc.client import CacheClient  # noqa: PLC0415

    async with CacheClient(Path(endpoint)) as client:
        reply = await client.get_base_vm(timeout_s=60, ttl_s=ttl_s)
        print(json.dumps({"id": reply.vm_id, "pid": reply.pid, "client": os.getpid()}), flush=True)
        if sys.stdin.readline() == "go\n":
            base = await BaseVM.attach(VMHandle.from_json(reply.handle))
            async with VM(*await base.adopt(timeout_s=30)) as vm:
                print((await vm.exec(["echo", "here"])).stdout.strip(), flush=True)
                sys.stdin.readline()


async def many(count: int, endpoint: str) -> None:
    async with Factory(FactoryConfig(remote=True, endpoint=endpoint)) as factory:
        for _ in range(count):
            begun = time.perf_counter()
            async with await factory.get_vm(timeout_s=60) as vm:
                result = await vm.exec(["true"], timeout_s=30)
                spent = time.perf_counter() - begun
                told = {"id": vm.id, "machine_id": vm.machine_id, "exit": result.exit_code, "seconds": spent}
                print(json.dumps(told), flush=True)
        print(json.dumps({"fallbacks": dict(factory.stats().fallbacks)}), flush=True)


def main() -> int:
    what, step, *rest = sys.argv[1:]
    if what == "many":
        asyncio.run(many(int(step), *rest))
        return 0
    if step != "-":
        die_at(*(SERVER_STEPS if what == "serve" else CLIENT_STEPS)[step])
    if what == "serve":
        from vmfork.__main__ import main as command  # noqa: PLC0415

        sys.argv = ["vmfork", "factory", "init", "--json"]
        return command() or 0
    asyncio.run(take(rest[0], float(rest[1])))
    return 0


if __name__ == "__main__":
    sys.exit(main())

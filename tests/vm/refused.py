"""A program: the lives of machines, in which the host refuses once. `python -m tests.vm.refused LIFE TEMPLATE`.

In a process of its own, because a call that fails half way may leave a descriptor to the collector, and a test must
leave none. It ends with 0 when each life ended well, or in an error with a hint, and no machine is left.
"""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import suppress

from tests.refusals import NUMBERS, Refusal, refusing
from vmfork.aio import (
    VM,
    Factory,
    FactoryConfig,
    InternalError,
    StoreBusy,
    Template,
    VMConfig,
    VMForkError,
    VMNotFound,
)

# So many places are tried of each life: of a fork, which takes a tenth of a second, and of a boot, which takes seconds.
OF_A_FORK, OF_A_BOOT = 15, 2
END_LIMIT_S = 60.0


async def fork(template: Template) -> None:
    """A fork is made, used, given up, taken over, looked at and closed."""
    async with template.fork(files={"/run/given": "x"}) as vm:
        await vm.exec(["cat", "/run/given"], check=True, timeout_s=60)
        await vm.write_file("/tmp/x", b"x" * 100_000)
        await vm.read_file("/tmp/x")
        vm.memory()
        handle = await vm.detach(ttl_s=60)
    async with VM.attach(handle) as vm:
        async with vm.start(["cat"], stdin=True) as process:
            await process.write_stdin(b"x")
            await process.close_stdin()
            async for _ in process.output():
                pass
        await VM.list()
        await vm.pause()
        await vm.resume()
        vm.console_tail()


async def fork_by_a_factory(template: Template) -> None:
    config = FactoryConfig(template=True, template_name=template.name)
    async with Factory(config, fetch_only=True) as factory, factory.get_vm() as vm:
        await vm.ping()


async def build(_template: Template) -> None:
    """A machine is booted and frozen, the template opened and removed."""
    try:
        await Template.build("refused", VMConfig(), warm_up=["true"], ready="true")
    finally:
        with suppress(VMForkError):
            await (await Template.open("refused")).remove()


LIVES = {"fork": (fork, OF_A_FORK), "factory": (fork_by_a_factory, OF_A_FORK), "build": (build, OF_A_BOOT)}


async def live(name: str, template: Template) -> None:
    life, tries = LIVES[name]
    with refusing() as counted:
        await life(template)
    assert counted.seen > tries
    for turn in range(tries):
        error = None
        with refusing(counted.seen * turn // tries, NUMBERS[turn % len(NUMBERS)]) as refusal:
            try:
                await life(template)
            except VMForkError as raised:
                error = raised.with_traceback(None)
        assert not isinstance(error, InternalError), (error.__cause__, refusal)
        assert error is None or error.hint, (error, refusal)
        await end_waiting(refusal)


async def end_waiting(refusal: Refusal) -> None:
    """A machine that was given up when the host refused waits for its taker, or its keeper is about to end it."""
    end = time.monotonic() + END_LIMIT_S
    while records := await VM.list():
        assert time.monotonic() < end, (refusal, records)
        for record in records:
            # One whose next owner could not take it ends; this one knows its id alone.
            with suppress(VMNotFound, StoreBusy):
                async with VM.attach(record.id):
                    pass
        await asyncio.sleep(0.05)


async def main(name: str, template: str) -> None:
    await live(name, await Template.open(template))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

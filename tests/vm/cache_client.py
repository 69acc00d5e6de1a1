"""A client process of a cache server: takes machines and says what it has, one JSON line each.

`cache_client.py ENDPOINT COUNT [hold]`: with `hold` each machine is kept until a line comes in, after which a program in it still has to answer.
"""

from __future__ import annotations

import asyncio
import json
import sys

from vmfork.config import FactoryConfig
from vmfork.errors import VMForkError
from vmfork.factory.remote import RemoteFactory


async def take(factory: RemoteFactory, *, hold: bool) -> None:
    try:
        base_vm = await factory.get_base_vm(timeout_s=60)
    except VMForkError as error:
        tell(error=error.code, message=str(error))
        return
    async with await base_vm.adopt(timeout_s=60) as vm:
        random = await vm.exec(["head", "-c16", "/dev/urandom"], timeout_s=60)
        tell(id=vm.id, hostname=vm.hostname, random=random.stdout_bytes.hex())
        if hold:
            await asyncio.to_thread(sys.stdin.readline)
            answer = await vm.exec(["hostname"], timeout_s=60)
            tell(id=vm.id, still=answer.stdout.strip())


def tell(**what: object) -> None:
    print(json.dumps(what), flush=True)


async def main(endpoint: str, count: str, *options: str) -> None:
    factory = await RemoteFactory.open(FactoryConfig(endpoint=endpoint))
    try:
        await asyncio.gather(*(take(factory, hold="hold" in options) for _ in range(int(count))))
    finally:
        await factory.aclose()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

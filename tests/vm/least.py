"""What an image is said to boot in, tried."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.aio import VM
from vmfork.config import Instance, VMConfig
from vmfork.image import ImageStore
from vmfork.machine.least import ample_memory_mib
from vmfork.machine.prepare import prepare

if TYPE_CHECKING:
    from vmfork.config import Places


async def boots_in_its_least(name: str, places: Places) -> None:
    """The image boots with one CPU and with four in exactly the memory that is known for it."""
    ample_mib = ample_memory_mib(ImageStore(places.images).open(name))
    await prepare(VMConfig(image=name, memory_mib=ample_mib), Instance(places))
    least = ImageStore(places.images).open(name).min_memory_mib
    assert least is not None
    for cpus in (1, 4):
        async with await VM.boot(VMConfig(image=name, memory_mib=least, cpus=cpus)) as vm:
            assert await vm.read_file("/proc/uptime"), (name, cpus)

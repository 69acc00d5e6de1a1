"""Which kernel modules go along, and in what order they load."""

from __future__ import annotations

import lzma

import pytest

from vmfork.errors import ImageError
from vmfork.image import modules

HOME = "usr/lib/modules/6.12/kernel"


def make(depends: str) -> bytes:
    return lzma.compress(b"\x7fELF..license=GPL\0depends=" + depends.encode() + b"\0name=x\0")


FILES = {
    f"{HOME}/drivers/net/virtio_net.ko.xz": make("net_failover"),
    f"{HOME}/drivers/net/net_failover.ko.xz": make("failover"),
    f"{HOME}/net/core/failover.ko.xz": make(""),
    f"{HOME}/drivers/char/virtio-rng.ko.xz": make(""),
    f"{HOME}/broken.ko.xz": make("absent"),
    f"{HOME}/modules.order": b"",
}
INDEX = modules.index_modules(FILES)
BUILT_IN = modules.list_built_in(b"kernel/fs/ext4/ext4.ko\nkernel/drivers/tty/serial-core.ko\n")


def test_files_are_known_by_the_kernels_names():
    assert set(INDEX) == {"virtio_net", "net_failover", "failover", "virtio_rng", "broken"}


def test_a_module_brings_what_it_needs_unpacked():
    bodies, needs = modules.select_modules(["virtio_net", "virtio-rng"], INDEX, FILES.__getitem__, BUILT_IN)
    assert list(bodies) == ["failover", "net_failover", "virtio_net", "virtio_rng"]
    assert bodies["failover"].startswith(b"\x7fELF")
    assert needs["virtio_net"] == ["net_failover"]
    assert modules.order_modules(["virtio_net"], needs) == ["failover", "net_failover", "virtio_net"]


def test_what_is_built_in_is_passed_over():
    bodies, needs = modules.select_modules(["ext4", "serial_core", "serial-core"], INDEX, FILES.__getitem__, BUILT_IN)
    assert bodies == {}
    assert modules.order_modules(["ext4"], needs) == []


def test_a_need_that_is_nowhere_is_an_error():
    with pytest.raises(ImageError, match="broken needs absent"):
        modules.select_modules(["broken"], INDEX, FILES.__getitem__, BUILT_IN)


def test_a_wanted_module_that_is_neither_a_file_nor_built_in_is_an_error():
    with pytest.raises(ImageError, match="9p is missing"):
        modules.select_modules(["ext4", "9p"], INDEX, FILES.__getitem__, BUILT_IN)

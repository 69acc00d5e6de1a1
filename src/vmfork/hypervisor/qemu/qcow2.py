"""The one image of QEMU's own format that is made here: in which nothing was written (docs/interop/qcow2.txt)."""

from __future__ import annotations

import os
import struct

from vmfork.units import MIB

MAGIC = b"QFI\xfb"
_CLUSTER_BITS = 16
_CLUSTER = 1 << _CLUSTER_BITS
# A cluster of 8 byte entries, each of which stands for a cluster of data.
_BYTES_OF_L2 = _CLUSTER // 8 * _CLUSTER
_VERSION, _REFCOUNT_ORDER, _HEADER_BYTES = 3, 4, 104
# Magic, version; where the name of a backing file is, and its length; bits of a cluster, size, encryption; entries of
# the L1 table, where it is; where the table of reference counts is, and its clusters; snapshots, where they are;
# features that must be known, may be known, and hold until somebody writes; bits of a count, bytes of this.
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")


def write_empty(fd: int, size_mib: int) -> None:
    """The file open as `fd`, which was empty, is an image of `size_mib` MiB in which nothing is. It takes 200 KiB.

    It names no backing file: who opens it says what lies below.
    """
    entries = -(-size_mib * MIB // _BYTES_OF_L2)
    own = -(-entries * 8 // _CLUSTER)
    header, table, block, l1 = range(4)
    head = _HEADER.pack(
        MAGIC, _VERSION, 0, 0, _CLUSTER_BITS, size_mib * MIB, 0, entries, l1 * _CLUSTER, table * _CLUSTER, 1,
        0, 0, 0, 0, 0, _REFCOUNT_ORDER, _HEADER_BYTES,
    )  # fmt: skip
    os.pwrite(fd, head, header * _CLUSTER)
    os.pwrite(fd, struct.pack(">Q", block * _CLUSTER), table * _CLUSTER)
    os.pwrite(fd, struct.pack(">H", 1) * (l1 + own), block * _CLUSTER)
    os.ftruncate(fd, (l1 + own) * _CLUSTER)


def check_plain(fd: int, size_mib: int) -> None:
    """Raises `ValueError` for anything but an image of `size_mib` MiB that has all its content in itself.

    It may come with a template from elsewhere, and QEMU opens the files that an image names.
    """
    head = os.pread(fd, _HEADER.size, 0)
    if len(head) < _HEADER.size:
        raise ValueError("it is no qcow2")
    magic, version, backing, _, bits, size, encryption, *_, snapshots, _, needed, _, _, _, _ = _HEADER.unpack(head)
    if (magic, version, bits) != (MAGIC, _VERSION, _CLUSTER_BITS):
        raise ValueError("it is no qcow2 of the kind that is made here")
    if backing or encryption or snapshots or needed:
        raise ValueError("it names other files, or needs what is not made here")
    if size != size_mib * MIB:
        raise ValueError(f"it is of {size} bytes, and its machines have a disk of {size_mib} MiB")


def format_of(fd: int) -> str:
    """`qcow2` or `raw`, as QEMU calls it: how the file open as `fd` begins, which no guest has written."""
    return "qcow2" if os.pread(fd, len(MAGIC), 0) == MAGIC else "raw"

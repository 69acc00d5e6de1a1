"""A guest of a hundred bytes: it says `hello` on the serial console, then writes dots for ever, resets, or hangs.

It is a bzImage as far as QEMU looks at one (boot protocol 2.04, Documentation/arch/x86/boot.rst): the loader copies the
set-up sectors to a segment and jumps to offset 0x200 of them, in real mode, with a stack. Tests that need a machine but
no Linux in it start in half a second with this.
"""

from __future__ import annotations

import struct

GREETING = b"hello\r\n"

_CODE_AT, _TEXT_AT = 0x280, 0x2E0

_CODE = bytes.fromhex(
    "fc"  # cld
    "be e0 02"  # mov si, _TEXT_AT
    "ac"  # next: lodsb
    "84 c0"  # test al, al
    "74 05"  # jz tick
    "e8 12 00"  # call putc
    "eb f6"  # jmp next
    "66 b9 00 00 04 00"  # tick: mov ecx, 0x40000
    "67 e2 fd"  # loop: loop ecx
    "b0 2e"  # mov al, '.'
    "e8 02 00"  # call putc
    "eb f0"  # jmp tick
    "88 c4"  # putc: mov ah, al
    "ba fd 03"  # mov dx, 0x3fd
    "ec"  # poll: in al, dx
    "a8 20"  # test al, 0x20 (transmitter empty)
    "74 fb"  # jz poll
    "ba f8 03"  # mov dx, 0x3f8
    "88 e0"  # mov al, ah
    "ee"  # out dx, al
    "c3"  # ret
)

_TICK = bytes.fromhex("66 b9 00 00 04 00")
_HANG = bytes.fromhex("eb fe 90 90 90 90")  # jmp $
_RESET = bytes.fromhex("b0 fe e6 64 eb fe")  # mov al, 0xfe; out 0x64, al; jmp $


def tiny_kernel(*, resets: bool = False, hangs: bool = False) -> bytes:
    then = _RESET if resets else _HANG if hangs else _TICK
    image = bytearray(5 * 512)
    image[0x1F1] = 4  # set-up sectors after the first
    struct.pack_into("<H", image, 0x1FE, 0xAA55)
    struct.pack_into("<BB4sH", image, 0x200, 0xEB, _CODE_AT - 0x202, b"HdrS", 0x0204)  # jmp to the code
    image[0x211] = 1  # the kernel proper is loaded high
    struct.pack_into("<I", image, 0x22C, 0x37FF_FFFF)  # highest address of an initramfs
    image[_CODE_AT : _CODE_AT + len(_CODE)] = _CODE.replace(_TICK, then)
    image[_TEXT_AT : _TEXT_AT + len(GREETING) + 1] = GREETING + b"\0"
    return bytes(image) + bytes(512)

"""The modules that a test host's disk needs are loaded in an order in which they can be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hosts.disk import list_modules

if TYPE_CHECKING:
    from pathlib import Path

# As depmod(8) writes it: all that a module needs, directly or not, the deepest need last.
LISTED = """\
kernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2/jbd2.ko.xz kernel/lib/crc16.ko.xz kernel/fs/mbcache.ko.xz
kernel/fs/jbd2/jbd2.ko.xz: kernel/lib/crc16.ko.xz
kernel/lib/crc16.ko.xz:
kernel/fs/mbcache.ko.xz:
kernel/crypto/crc32c_generic.ko.xz:
"""


def test_needs_come_first_each_once_and_what_is_built_in_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "modules.dep").write_text(LISTED)
    order = [path.relative_to(tmp_path).name.partition(".")[0] for path in list_modules(tmp_path)]
    assert order == ["crc32c_generic", "mbcache", "crc16", "jbd2", "ext4"]

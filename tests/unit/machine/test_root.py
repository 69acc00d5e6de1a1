"""The guest's root is a tmpfs where its kernel can lift the limit that a tmpfs has, and else a ramfs."""

from __future__ import annotations

import pytest

from vmfork.machine.plan import choose_root


@pytest.mark.parametrize(
    ("release", "root"),
    [
        ("6.12.118+deb13-cloud-amd64", "tmpfs"),
        ("6.12.55", "tmpfs"),
        ("6.12.54+deb13-cloud-amd64", "ramfs"),
        ("6.1.0-39-cloud-amd64", "ramfs"),
        ("6.1.158", "tmpfs"),
        ("6.13.400", "ramfs"),
        ("6.18.0", "tmpfs"),
        ("7.0.1-rc1", "tmpfs"),
        ("6.18", "ramfs"),
        ("unknown", "ramfs"),
        ("", "ramfs"),
    ],
)
def test_the_root_is_what_the_kernel_can(release: str, root: str) -> None:
    assert choose_root(release).split()[0] == f"rootfstype={root}"

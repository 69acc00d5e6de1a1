"""What the tables keep out of an image, and of a slim one."""

from __future__ import annotations

import pytest

from vmfork.image.dropped import is_covered, is_dropped


@pytest.mark.parametrize(
    "path",
    [
        "usr/share/doc",
        "usr/share/doc/bash/copyright",
        "usr/share/man/man1/ls.1.gz",
        "boot/vmlinuz",
        "etc/shadow-",
        "etc/ssh/ssh_host_ed25519_key.pub",
        "etc/ssl/private/ssl-cert-snakeoil.key",
        "var/lib/postgresql/17/main/PG_VERSION",
        "var/log/nginx/access.log",
    ],
)
@pytest.mark.parametrize("slim", [True, False])
def test_out_of_every_image(path, slim):
    assert is_dropped(path, slim=slim)


@pytest.mark.parametrize(
    "path",
    [
        "usr/lib/x86_64-linux-gnu/gconv/BIG5.so",
        "usr/lib/python3.13/test/support/__init__.py",
        "usr/share/i18n/locales/de_DE",
        "etc/init.d/redis-server",
        "etc/rc2.d/S01redis-server",
        "var/lib/dpkg/status",
    ],
)
def test_only_slim_images_do_without(path):
    assert is_dropped(path, slim=True)
    assert not is_dropped(path, slim=False)


@pytest.mark.parametrize(
    "path",
    [
        "usr/share/documents",
        "usr/bin/ls",
        "usr/lib/x86_64-linux-gnu/gconv/gconv-modules",
        "usr/lib/x86_64-linux-gnu/gconv/ISO8859-1.so",
        "usr/lib/x86_64-linux-gnu/gconv/UTF-16.so",
        "usr/lib/x86_64-linux-gnu/libc.so.6",
        "usr/lib/locale/C.utf8/LC_CTYPE",
        "usr/lib/python3.13/testing.py",
        "etc/passwd",
        "etc/ssh/sshd_config",
        "var/log/nginx",
    ],
)
def test_kept(path):
    assert not is_dropped(path, slim=True)


def test_what_a_mount_covers_is_not_lost():
    assert is_covered("run/lock")
    assert not is_covered("run")

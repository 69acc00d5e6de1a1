"""What a guest does without: tables to read.

A pattern has a '*' and matches the whole path; '*' crosses '/'. What is below a path goes with it.
"""

from __future__ import annotations

import re

# Not even unpacked, as in Debian's slim container images; path -> why.
UNPACKED = {
    "usr/share/doc": "documentation",
    "usr/share/man": "documentation",
    "usr/share/info": "documentation",
    "usr/share/locale": "translations; locales themselves are elsewhere",
    "usr/share/lintian": "for Debian's own checks",
    "usr/share/bug": "for reporting bugs",
}

# Where the guest mounts something.
COVERED = ("dev/*", "run/*", "tmp/*")

# Left by the build, or of no use in any guest.
ALWAYS = UNPACKED | {
    "usr/share/linda": "for Debian's own checks",
    "usr/share/doc-base": "documentation",
    "usr/share/common-licenses": "documentation",
    "boot": "the kernel lies beside the initramfs",
    "etc/*.dpkg-*": "left by dpkg",
    "etc/.pwd.lock": "left by the build",
    "etc/apt/apt.conf.d/00mmdebstrap": "left by the build",
    "var/cache/apt/*": "packages",
    "var/cache/debconf/*-old": "left by the build",
    "var/cache/ldconfig/*": "only for ldconfig; what programs read is etc/ld.so.cache",
    "var/lib/apt/lists/*": "package lists",
    "var/lib/dpkg/*-old": "left by the build",
    "var/lib/dpkg/lock*": "left by the build",
    "var/lib/dpkg/info/*.md5sums": "checksums of files, many of which are not here",
    "var/log/apt/*": "logs of the build",
    "var/log/*.log": "logs of the build",
    **{f"etc/{name}-": "left by the build" for name in ("passwd", "group", "shadow", "gshadow", "subuid", "subgid")},
}

# Drawn at random by scripts of packages: no guest may share them with another, and no two builds would be the same.
SECRET = {
    "etc/ssh/ssh_host_*": "made by: ssh-keygen -A",
    "etc/ssl/certs/ssl-cert-snakeoil.pem": "made by: make-ssl-cert generate-default-snakeoil",
    "etc/ssl/private/ssl-cert-snakeoil.key": "see the certificate",
    "etc/postgresql/*/main": "made by: pg_createcluster VERSION main",
    "var/lib/postgresql/*/main": "see its configuration",
    "var/lib/dbus/machine-id": "a guest's own",
    "var/lib/systemd/random-seed": "a guest's own",
    "var/lib/systemd/credential.secret": "a guest's own",
}

# What the packages of the default image do without, once they are installed. Another package may need any of it.
SLIM = {
    "usr/share/i18n": "sources of locales",
    "usr/share/menu": "desktop",
    "usr/share/pixmaps": "desktop",
    "usr/share/applications": "desktop",
    "usr/share/icons": "desktop",
    "usr/share/bash-completion": "interactive comfort",
    "usr/share/zsh": "interactive comfort",
    "usr/share/fish": "interactive comfort",
    "usr/share/gdb": "debugging",
    "usr/share/debconf": "package configuration",
    "usr/share/perl5": "package configuration",
    "usr/share/pam-configs": "package configuration",
    "usr/share/initramfs-tools": "another builder's",
    "usr/share/polkit-1": "desktop",
    "usr/share/xml": "documentation",
    "usr/lib/*/gconv/*": "character sets beyond Unicode and Latin-1",
    "usr/lib/udev": "the kernel's devtmpfs makes the devices",
    "usr/lib/systemd/system": "service units; the agent is init",
    "usr/lib/systemd/user": "service units; the agent is init",
    "usr/lib/python3*/test": "Python's own tests",
    "usr/lib/python3*/idlelib": "desktop",
    "usr/lib/python3*/config-3*": "for building Python extensions statically",
    "usr/lib/python3*/pydoc_data": "documentation",
    "usr/lib/python3*/lib-dynload/_test*": "Python's own tests",
    "usr/bin/dpkg*": "see var/lib/dpkg",
    "usr/sbin/dpkg*": "see var/lib/dpkg",
    "usr/bin/localedef": "its sources are not here",
    "usr/sbin/devlink": "hardware a guest has not",
    "usr/bin/rdma": "hardware a guest has not",
    "usr/sbin/rdma": "hardware a guest has not",
    "usr/sbin/dcb": "hardware a guest has not",
    "usr/sbin/tipc": "hardware a guest has not",
    "usr/sbin/vdpa": "hardware a guest has not",
    "etc/apt": "apt is not here",
    "etc/init.d": "the agent is init",
    "etc/rc?.d": "the agent is init",
    "etc/cron.*": "nothing runs it",
    "etc/logrotate.d": "nothing runs it",
    "etc/initramfs-tools": "another builder's",
    "etc/systemd": "the agent is init",
    "var/cache/debconf": "package configuration",
    "var/lib/apt": "apt is not here",
    "var/lib/dpkg": "dpkg is not here; image.json lists the packages",
    "var/lib/pam": "package configuration",
    "var/lib/systemd": "the agent is init",
}

# Exceptions to SLIM: what Python and iconv(1) take for granted, and what the rest of the world sends.
SLIM_KEPT = tuple(
    f"usr/lib/*/gconv/{name}"
    for name in (
        "gconv-modules", "gconv-modules.cache", "gconv-modules.d/*", "UNICODE.so", "UTF-16.so", "UTF-32.so", "UTF-7.so",
        "ISO8859-1.so", "ISO8859-15.so", "CP1252.so",
    )
)  # fmt: skip

# All that decides what is left out, for the digest of the recipe.
TABLES = ([*UNPACKED], COVERED, [*ALWAYS], [*SECRET], [*SLIM], SLIM_KEPT)


def is_covered(path: str) -> bool:
    """Whether the guest mounts something over `path`. A link that leads there is not a dangling one."""
    return _COVERED.match(path) is not None


def is_dropped(path: str, *, slim: bool) -> bool:
    """Whether the tables keep `path` (no leading slash) out of the image; `slim` adds the table of that name."""
    return _EVERYWHERE.match(path) is not None or (
        slim and _SLIM.match(path) is not None and _SLIM_KEPT.match(path) is None
    )


def _compile(*patterns: str) -> re.Pattern[str]:
    # A folder goes with all below it.
    alternatives = (re.escape(pattern).replace(r"\*", ".*").replace(r"\?", "[^/]") for pattern in patterns)
    return re.compile(rf"(?:{'|'.join(alternatives)})(?:/.*)?\Z", re.DOTALL)


_COVERED = _compile(*COVERED)
_EVERYWHERE = _compile(*ALWAYS, *SECRET)
_SLIM = _compile(*SLIM)
_SLIM_KEPT = _compile(*SLIM_KEPT)

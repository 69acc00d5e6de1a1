"""What goes into an image and what stays out: tables to read, and the digest that names their outcome."""

from __future__ import annotations

import hashlib
import json
import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from vmfork.errors import HostError

if TYPE_CHECKING:
    from vmfork.config import ImageConfig

# To be raised with every change of the builder that changes an image; the tables below count by themselves.
RECIPE_VERSION = 1

ARCH = "x86_64"
DEBIAN_ARCH = "amd64"
MULTIARCH = "x86_64-linux-gnu"
KERNEL_PACKAGE = "linux-image-cloud-amd64"

# The least a guest needs: the folders, /etc/passwd and its kin, a shell, the locale C.UTF-8. Also asked for by every
# other package without being declared, since Debian takes essential packages for granted.
BASE_PACKAGES = ("base-files", "base-passwd", "coreutils", "dash", "libc-bin")

# Kernel modules in the image, beside those they depend on; by the names of their files.
MODULES = {
    "virtio_mmio": "virtio devices of the machine `microvm`, which has no PCI",
    "virtio_net": "the network card",
    "virtio-rng": "the host as a source of entropy",
    "virtio_blk": "disks",
    "overlay": "a writable layer over something read-only",
    "loop": "a file as a disk",
    "tun": "VPN and nested networks",
}

# Loaded at boot where the device is, a path in the guest's sysfs: a module loaded in vain costs milliseconds under
# emulation. LNRO0005 is what ACPI calls a virtio device that is reached through memory (QEMU, hw/i386/acpi-microvm.c).
BOOT_MODULES = (("virtio_mmio", "/sys/bus/acpi/devices/LNRO0005:00"),)

# (path prefix or pattern, why a guest does without). A pattern has a '*' and matches the whole path; '*' crosses '/'.
DROPPED = (
    ("usr/share/doc", "documentation"),
    ("usr/share/man", "documentation"),
    ("usr/share/info", "documentation"),
    ("usr/share/locale", "translations; C.UTF-8 is elsewhere"),
    ("usr/share/i18n", "sources of locales"),
    ("usr/share/lintian", "for Debian's own checks"),
    ("usr/share/linda", "for Debian's own checks"),
    ("usr/share/bug", "for reporting bugs"),
    ("usr/share/doc-base", "documentation"),
    ("usr/share/common-licenses", "documentation"),
    ("usr/share/menu", "desktop"),
    ("usr/share/pixmaps", "desktop"),
    ("usr/share/applications", "desktop"),
    ("usr/share/icons", "desktop"),
    ("usr/share/bash-completion", "interactive comfort"),
    ("usr/share/zsh", "interactive comfort"),
    ("usr/share/fish", "interactive comfort"),
    ("usr/share/gdb", "debugging"),
    ("usr/share/debconf", "package configuration; no maintainer script runs here"),
    ("usr/share/initramfs-tools", "another builder's"),
    ("usr/share/polkit-1", "desktop"),
    ("usr/share/xml", "documentation"),
    ("usr/lib/*/gconv/*", "character sets the C library converts, beyond Unicode and Latin-1"),
    ("usr/lib/udev", "the kernel's devtmpfs makes the devices"),
    ("usr/lib/systemd/system", "service units; the agent is init"),
    ("usr/lib/systemd/user", "service units; the agent is init"),
    ("usr/lib/python3*/test", "Python's own tests"),
    ("usr/lib/python3*/idlelib", "desktop"),
    ("usr/lib/python3*/config-3*", "for building Python extensions statically"),
    ("usr/lib/python3*/pydoc_data", "documentation"),
    ("usr/lib/python3*/lib-dynload/_test*", "Python's own tests"),
    ("usr/bin/dpkg*", "nothing was configured by dpkg"),
    ("usr/sbin/dpkg*", "nothing was configured by dpkg"),
    ("usr/bin/localedef", "its sources are not here"),
    ("usr/sbin/devlink", "hardware a guest has not"),
    ("usr/bin/rdma", "hardware a guest has not"),
    ("usr/sbin/rdma", "hardware a guest has not"),
    ("usr/sbin/dcb", "hardware a guest has not"),
    ("usr/sbin/tipc", "hardware a guest has not"),
    ("usr/sbin/vdpa", "hardware a guest has not"),
    ("usr/share/perl5/Debconf", "package configuration; no maintainer script runs here"),
    ("etc/init.d", "the agent is init"),
    ("etc/cron.*", "nothing runs it"),
    ("etc/logrotate.d", "nothing runs it"),
    ("etc/initramfs-tools", "another builder's"),
    ("boot", "the kernel lies beside the initramfs"),
    ("dev", "made by the kernel"),
    ("var/cache", "caches"),
    ("var/log", "logs of the build"),
    ("var/lib/apt", "package lists"),
    ("var/lib/dpkg", "nothing was configured by dpkg; image.json lists the packages"),
)

# Exceptions to the table above: the character sets that plain tools ask for.
KEPT = (
    "usr/lib/*/gconv/gconv-modules",
    "usr/lib/*/gconv/gconv-modules.cache",
    "usr/lib/*/gconv/gconv-modules.d/*",
    "usr/lib/*/gconv/ISO8859-1.so",
    "usr/lib/*/gconv/ISO8859-15.so",
    "usr/lib/*/gconv/CP1252.so",
)  # fmt: skip

# Python's library is compiled beforehand, which takes a second here and under emulation saves one at the first start
# of every program in every fork. Not worth its memory is what few programs import.
NOT_COMPILED = (
    "/(test|idlelib|turtledemo|pydoc_data|config-[^/]*|_pyrepl|ensurepip|venv|wsgiref|curses|tkinter|xmlrpc|dbm|lib-dynload"
    "|unittest/mock|encodings/(?!__init__|aliases|ascii|utf_8|utf_16|latin_1|idna|punycode|unicode_escape)[^/]*"
    "|asyncio/(proactor|windows)_[^/]*|(turtle|pydoc|doctest|pdb|bdb|_pydecimal|_pyio|_pydatetime|mailbox|imaplib|ftplib"
    "|poplib|smtplib|optparse|pickletools|pstats|cProfile|profile|trace|wave|plistlib|_sysconfigdata[^/]*|_ios_support"
    "|_android_support|nturl2path|ntpath|modulefinder|sre_[a-z]*|tabnanny|this|antigravity)[.]py)"
)

# Folders every guest has: path, mode.
FOLDERS = (
    ("dev", 0o755), ("etc", 0o755), ("home", 0o755), ("mnt", 0o755), ("opt", 0o755), ("proc", 0o555), ("root", 0o700),
    ("run", 0o755), ("srv", 0o755), ("sys", 0o555), ("tmp", 0o1777), ("usr", 0o755), ("var", 0o755),
    ("var/cache", 0o755), ("var/lib", 0o755), ("var/log", 0o755), ("var/tmp", 0o1777),
)  # fmt: skip

AGENT_PATH = "usr/lib/vmfork/agent"
MODULES_LIST = "etc/vmfork/modules"

# Where Debian's Python looks for modules of the distribution, whatever its version. It costs 12 KiB of memory, and
# nothing where there is no Python.
PYTHON = "usr/bin/python3"
GUEST_MODULE = "usr/lib/python3/dist-packages/vmfork_guest.py"

# Files of ours beside this module: source, path in the image, mode, path without which it has no use.
SHIPPED = (
    ("python/vmfork_guest.py", GUEST_MODULE, 0o644, PYTHON),
    ("hooks/50-seeds", "etc/vmfork/before-freeze.d/50-seeds", 0o755, ""),
    ("hooks/50-ssh-host-keys", "etc/vmfork/before-freeze.d/50-ssh-host-keys", 0o755, "usr/bin/ssh-keygen"),
    ("hooks/renew-ssh-host-keys", "usr/lib/vmfork/renew-ssh-host-keys", 0o755, "usr/bin/ssh-keygen"),
)

# Written where no package brought the file: path, content. Links are in LINKS.
FILES = (
    ("etc/hostname", "vmfork\n"),
    ("etc/hosts", "127.0.0.1\tlocalhost\n::1\t\tlocalhost ip6-localhost ip6-loopback\n"),
    ("etc/nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\n"
                          "protocols: files\nservices: files\n"),
    ("etc/resolv.conf", ""),
    ("etc/machine-id", ""),
    ("etc/fstab", ""),
    ("etc/environment", ""),
    ("etc/timezone", "Etc/UTC\n"),
    ("etc/shells", "/bin/sh\n/bin/bash\n"),
)  # fmt: skip

# Symbolic links where no package brought the path: path, target.
LINKS = (
    ("bin", "usr/bin"),
    ("sbin", "usr/sbin"),
    ("lib", "usr/lib"),
    ("lib64", "usr/lib64"),
    ("etc/mtab", "../proc/self/mounts"),
    ("etc/localtime", "/usr/share/zoneinfo/Etc/UTC"),
    ("usr/bin/sh", "dash"),
    ("var/run", "/run"),
    ("var/lock", "/run/lock"),
)

# What a maintainer script would have copied: from, to.
COPIES = (
    ("usr/share/base-files/profile", "etc/profile"),
    ("usr/share/base-files/dot.profile", "root/.profile"),
    ("usr/share/base-files/dot.bashrc", "root/.bashrc"),
    ("usr/share/base-passwd/passwd.master", "etc/passwd"),
    ("usr/share/base-passwd/group.master", "etc/group"),
)


def is_dropped(path: str) -> bool:
    """Whether the table keeps `path` (no leading slash) out of the image."""
    return _DROP.match(path) is not None and _KEEP.match(path) is None


def _compile(patterns: list[str]) -> re.Pattern[str]:
    # A folder goes with all below it.
    alternatives = (re.escape(pattern).replace(r"\*", ".*") for pattern in patterns)
    return re.compile(rf"(?:{'|'.join(alternatives)})(?:/.*)?\Z", re.DOTALL)


_DROP = _compile([pattern for pattern, _ in DROPPED])
_KEEP = _compile(list(KEPT))


def list_packages(config: ImageConfig) -> tuple[str, ...]:
    """The packages to ask for, sorted, each once; the kernel is fetched apart."""
    return tuple(sorted({*BASE_PACKAGES, *config.packages}))


def find_agent() -> Path:
    """The agent's binary as the package ships it; `HostError` when it was not built."""
    path = Path(str(resources.files("vmfork.image"))) / "data" / f"agent-{ARCH}"
    if not path.is_file():
        raise HostError(
            f"the guest agent is missing from this installation: {path}",
            hint="install vmfork again; its build step compiles the agent: pip install --force-reinstall vmfork",
        )
    return path


def read_guest_module() -> bytes:
    """The Python module that a guest with Python carries; see its own text."""
    return read_shipped("python/vmfork_guest.py")


def read_shipped(source: str) -> bytes:
    """A file of the table SHIPPED."""
    return (Path(__file__).parent / source).read_bytes()


def compute_digest(config: ImageConfig, agent: bytes) -> str:
    """The name of what would be built: a SHA-256 in hex over everything that decides it and is known beforehand.

    The versions that Debian offers today are not known beforehand: an image stays as it is until it is rebuilt.
    """
    inputs = {
        "recipe": RECIPE_VERSION,
        "arch": ARCH,
        "suite": config.suite,
        "packages": list_packages(config),
        "kernel": KERNEL_PACKAGE,
        "modules": [sorted(MODULES), BOOT_MODULES],
        "files": [[path for path, _ in DROPPED], KEPT, FOLDERS, FILES, LINKS, COPIES],
        "compiled": NOT_COMPILED,
        "agent": hashlib.sha256(agent).hexdigest(),
        "shipped": [(hashlib.sha256(read_shipped(source)).hexdigest(), *where) for source, *where in SHIPPED],
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()

"""What goes into an image and what stays out: tables to read, and the digest that names their outcome."""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from vmfork.errors import HostError
from vmfork.image import dropped

if TYPE_CHECKING:
    from vmfork.config import ImageConfig

# To be raised with every change of the builder that changes an image; the tables below count by themselves.
RECIPE_VERSION = 3

ARCH = "x86_64"
DEBIAN_ARCH = "amd64"
KERNEL_PACKAGE = "linux-image-cloud-amd64"

# The date of all that a build makes, in seconds since 1970: of files, and for scripts of packages, which read it from
# SOURCE_DATE_EPOCH. The day that Debian 13 was released; files of packages keep their own.
EPOCH = 1754697600

# The least a guest needs: the folders, /etc/passwd and its kin, a shell, the locale C.UTF-8.
BASE_PACKAGES = ("base-files", "base-passwd", "coreutils", "dash", "libc-bin")

# What plain tools and scripts ask for. Looked through: see `is_slim`.
DEFAULT_PACKAGES = (
    "ca-certificates", "coreutils", "curl", "dash", "bash", "diffutils", "file", "findutils", "gawk", "grep", "gzip",
    "hostname", "iproute2", "jq", "kmod", "less", "libssl3t64", "mount", "ncurses-base", "netbase", "patch", "procps",
    "python3", "sed", "tar", "util-linux", "xz-utils",
)  # fmt: skip

# Kernel modules in the image, beside those they depend on; by the names of their files.
MODULES = {
    "virtio_mmio": "virtio devices of the machine `microvm`, which has no PCI",
    "virtio_net": "the network card",
    "virtio-rng": "the host as a source of entropy",
    "virtio_blk": "disks",
    "ext4": "the file system of a disk that a guest writes to",
    "overlay": "a writable layer over something read-only",
    "squashfs": "a root on a disk, of an image that takes its kernel from this one",
    "loop": "a file as a disk",
    "tun": "VPN and nested networks",
}

# Loaded at boot where the device is, a path in the guest's sysfs: a module loaded in vain costs milliseconds under
# emulation. LNRO0005 is what ACPI calls a virtio device that is reached through memory (QEMU, hw/i386/acpi-microvm.c).
# The first virtio device of each machine is the agent's port, so that there is a second one where there is a card.
BOOT_MODULES = (
    ("virtio_mmio", "/sys/bus/acpi/devices/LNRO0005:00"),
    ("virtio_net", "/sys/bus/virtio/devices/virtio1"),
)

# What a root on a disk is found by: loaded from the initramfs. With the disk, a card is the third virtio device.
DISK_BOOT_MODULES = (
    BOOT_MODULES[0],
    ("virtio_blk", ""),
    ("squashfs", ""),
    ("overlay", ""),
)
DISK_LATE_MODULES = (("virtio_net", "/sys/bus/virtio/devices/virtio2"),)

# What a disk that the guest writes to is mounted by: loaded where there is one. A file system asks the kernel for a
# checksum that may be a module, which no program of the guest need load then.
SCRATCH_MODULES = (("virtio_blk", ""), ("crc32c_generic", ""), ("ext4", ""))

# What a kernel may lack: from Linux 6.16 on there is no such module, and ext4 has the checksum of the kernel itself.
MAY_LACK = ("crc32c_generic",)

# Python's library is compiled beforehand, which takes a second here and under emulation saves one at the first start
# of every program in every fork. What few programs import is not worth its memory.
NOT_COMPILED = (
    "/(test|idlelib|turtledemo|pydoc_data|config-[^/]*|_pyrepl|ensurepip|venv|wsgiref|curses|tkinter|xmlrpc|dbm|lib-dynload"
    "|unittest/mock|encodings/(?!__init__|aliases|ascii|utf_8|utf_16|latin_1|idna|punycode|unicode_escape)[^/]*"
    "|asyncio/(proactor|windows)_[^/]*|(turtle|pydoc|doctest|pdb|bdb|_pydecimal|_pyio|_pydatetime|mailbox|imaplib|ftplib"
    "|poplib|smtplib|optparse|pickletools|pstats|cProfile|profile|trace|wave|plistlib|_sysconfigdata[^/]*|_ios_support"
    "|_android_support|nturl2path|ntpath|modulefinder|sre_[a-z]*|tabnanny|this|antigravity)[.]py)"
)

# Folders every guest has, empty until it mounts something there: path, mode.
FOLDERS = (("dev", 0o755), ("proc", 0o555), ("run", 0o755), ("sys", 0o555), ("tmp", 0o1777))

# The scripts of a build: see debootstrap.
INSTALL = Path(__file__).parent / "install"

AGENT_PATH = "usr/lib/vmfork/agent"
MODULES_LIST = "etc/vmfork/modules"
SCRATCH_LIST = "etc/vmfork/scratch-modules"
# In an initramfs whose root is on a disk: the file system there.
ROOT_TOLD = "etc/vmfork/root"

# Roots from this size on lie on a disk, unless somebody said otherwise (docs/decisions/0053).
DISK_FROM_BYTES = 384 << 20

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

# What would be this host's, or is every guest's own: path, content.
FILES = (
    ("etc/hostname", "vmfork\n"),
    ("etc/hosts", "127.0.0.1\tlocalhost\n::1\t\tlocalhost ip6-localhost ip6-loopback\n"),
    ("etc/resolv.conf", ""),
    ("etc/machine-id", ""),
)

# Symbolic links where no package brought the path: path, target.
LINKS = (("etc/mtab", "../proc/self/mounts"),)


def list_packages(config: ImageConfig) -> tuple[str, ...]:
    """The packages to ask for, sorted, each once; the kernel is fetched apart."""
    return tuple(sorted({*BASE_PACKAGES, *(() if config.bare else DEFAULT_PACKAGES), *config.packages}))


def is_slim(config: ImageConfig) -> bool:
    """Whether every package of the image is known to do without Debian's essential ones.

    The packages of the default image are. Any other may use an essential package without naming it (adduser is written
    in Perl), so an image with another one keeps them all, and `dpkg` with its database.
    """
    return set(list_packages(config)) <= {*BASE_PACKAGES, *DEFAULT_PACKAGES}


def list_boot_modules() -> tuple[str, ...]:
    """The modules that a guest loads where it finds their devices."""
    return tuple(dict.fromkeys(name for name, _ in (*BOOT_MODULES, *SCRATCH_MODULES)))


def find_agent() -> Path:
    """The agent's binary as the package ships it. Raises `HostError` when it was not built."""
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
        "modules": [sorted(MODULES), BOOT_MODULES, DISK_BOOT_MODULES, DISK_LATE_MODULES, SCRATCH_MODULES],
        "root": [config.root, DISK_FROM_BYTES],
        "files": [FOLDERS, FILES, LINKS],
        "dropped": dropped.TABLES,
        "compiled": NOT_COMPILED,
        "epoch": EPOCH,
        "install": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(INSTALL.iterdir())},
        "agent": hashlib.sha256(agent).hexdigest(),
        "shipped": [(hashlib.sha256(read_shipped(source)).hexdigest(), *where) for source, *where in SHIPPED],
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()

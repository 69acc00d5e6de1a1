"""A root file system of a Debian release with given packages, made by mmdebstrap and kept for a week.

`tools/hosts/root SUITE PACKAGE...` prints its folder; Python says `with open_root(suite, packages) as root`.
Root makes it in a chroot, another user in a user namespace (`uidmap`), and then owns all its files. `/dev` is empty,
and `packages` beside `root` lists the versions. It is for reading: mount it below an overlay to write.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hosts import cache

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# A kernel alone: by dependency it would bring an initramfs builder, and running that takes longer than all the rest.
# `$1` is the file system. No file holds this script: in a user namespace, its reader may not enter our folder.
_KERNEL_HOOK = """set -eu
root=$1
package=@
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
kernel=$(apt-cache depends "$package" | sed -n 's/^ *Depends: \\(linux-image-[0-9].*\\)$/\\1/p' | head -n 1)
test -n "$kernel" || { echo "E: no package $package" >&2; exit 1; }
cd "$root/tmp"
apt-get --quiet --quiet download "$kernel" >&2
dpkg-deb --fsys-tarfile "$kernel"_*.deb | tar --extract --keep-directory-symlink --directory "$root"
rm "$kernel"_*.deb
chroot "$root" depmod "${kernel#linux-image-}"
"""


class RootError(Exception):
    """mmdebstrap failed; the text is the end of what it said."""


@contextmanager
def open_root(suite: str, packages: Sequence[str], *, kernel: str = "") -> Iterator[Path]:
    """In the block the folder holds that release with these packages and what they need. Raises `RootError`.

    `kernel` names a package such as `linux-image-amd64`: it is unpacked, with its modules, without its dependencies.
    """
    wanted = sorted({*packages, *(["kmod"] if kernel else [])})

    def make(folder: Path) -> None:
        _make_root(folder, suite, wanted, kernel)

    cache.sweep()
    made_by = Path(__file__).read_text()
    with cache.open_kept(suite, [suite, wanted, kernel, made_by], make) as folder:
        yield folder / "root"


def _make_root(folder: Path, suite: str, packages: Sequence[str], kernel: str) -> None:
    root, log = folder / "root", folder / "log"
    root.mkdir()
    with log.open("wb") as said:
        maker = subprocess.Popen(
            _build_argv(suite, packages, kernel),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
        try:
            unpacked = subprocess.run(
                ["tar", "--extract", "--directory", root], stdin=maker.stdout, stderr=said, check=False
            )
        except BaseException:
            maker.terminate()  # it removes what it has made
            raise
        finally:
            assert maker.stdout is not None
            maker.stdout.close()
            maker.wait()
    if maker.returncode or unpacked.returncode:
        raise RootError(f"mmdebstrap {suite}:\n" + "\n".join(log.read_text(errors="replace").splitlines()[-30:]))
    (root / "dev").mkdir(exist_ok=True)  # Debian 13's mmdebstrap packs an empty one, Debian 12's none
    _list_packages(root, folder / "packages")


def _build_argv(suite: str, packages: Sequence[str], kernel: str) -> list[str]:
    argv = ["setpriv", "--pdeathsig", "TERM", "--", "mmdebstrap"]
    argv += ["--variant=essential", "--format=tar", f"--include={','.join(packages)}"]
    # Device nodes are root's to make; where the folder becomes a machine or a chroot, /dev is mounted.
    argv += ["--skip=output/dev", '--aptopt=Acquire::Languages "none"', '--aptopt=Acquire::Retries "2"']
    if kernel:
        argv.append("--customize-hook=" + _KERNEL_HOOK.replace("@", shlex.quote(kernel)))
    return [*argv, suite, "-"]


def _list_packages(root: Path, output: Path) -> None:
    shown = subprocess.run(
        ["dpkg-query", f"--admindir={root}/var/lib/dpkg", "--show"], capture_output=True, text=True, check=True
    )
    output.write_text(shown.stdout)

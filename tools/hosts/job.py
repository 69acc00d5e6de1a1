"""What a test host is given to run: this project as a wheel, what it needs, its tests, and guest images.

```
run          the command, with its environment
site/        for PYTHONPATH: the project's wheel, unpacked, and what it and its tests need
project/     tests/, and what they read of the project
home/        VMFORK_HOME with images; results/ takes what is to be sent back
```
"""

from __future__ import annotations

import io
import shlex
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from hosts.image import ALL, find_disk

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from vmfork.image import Image

PROJECT = Path(__file__).resolve().parents[2]
_FILES = ("pyproject.toml", "README.md", "benchmarks", "docs", "tests", "tools")
# What a test host has, wherever it runs.
_OF_HOSTS = "passt,own-address,slim-qemu"
_TEST_PACKAGES = ("pytest", "pytest-asyncio")
_FOLDER = "/job"


def list_requirements() -> list[str]:
    """What the package needs to run and serve, and to be tested."""
    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    project = settings["project"]
    test = [one for one in settings["dependency-groups"]["dev"] if one.split(">")[0] in _TEST_PACKAGES]
    return [*project["dependencies"], *project["optional-dependencies"]["server"], *test]


def promise(images: Iterable[Image]) -> str:
    """What tests may rely on where KVM works and these images were brought: a skip for want of it is a failure."""
    has_all = ALL.keys() <= {image.name for image in images}
    return "working-kvm,brought-images" if has_all else "working-kvm"


@contextmanager
def open_job(command: Sequence[str], *, packages: Path, images: Sequence[Image]) -> Iterator[IO[bytes]]:
    """In the block the file holds the job: `command`, to be run in `project`.

    `packages` is a folder of installed Python packages; `images` have their least memory measured.
    """
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            tar.add(packages, "site")
            _add_wheel(tar)
            for name in _FILES:
                tar.add(PROJECT / name, f"project/{name}", filter=_leave_out_compiled)
            _add_images(tar, images)
            _add_file(tar, "run", _write_script(command, promise(images)))
        yield file


def _add_wheel(tar: tarfile.TarFile) -> None:
    with tempfile.TemporaryDirectory(prefix="vmfork-wheel-") as folder:
        argv = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--wheel-dir", folder]
        subprocess.run([*argv, "--no-deps", "--no-index", "--no-build-isolation", PROJECT], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                mode = member.external_attr >> 16 & 0o777
                _add_file(tar, f"site/{member.filename}", archive.read(member), mode=mode)


def _add_images(tar: tarfile.TarFile, images: Iterable[Image]) -> None:
    locks = tarfile.TarInfo("home/images/locks")
    locks.type, locks.mode = tarfile.DIRTYPE, 0o700
    tar.addfile(locks)
    for image in images:
        folder = image.kernel.parent
        tar.add(folder, f"home/images/{folder.name}")
        _add_link(tar, f"home/images/names/{image.name}", f"../{folder.name}")
        if (disk := find_disk(image)) is not None:
            place = f"home/disks/{image.disk_sha256}"
            tar.add(disk, f"{place}/{disk.name}")
            # It is this image's: no sweep takes it for nobody's.
            _add_link(tar, f"{place}/users/{image.name}", f"{_FOLDER}/home/images/{folder.name}")


def _add_link(tar: tarfile.TarFile, name: str, target: str) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    tar.addfile(info)


def _add_file(tar: tarfile.TarFile, name: str, content: bytes, *, mode: int = 0o644) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), mode
    tar.addfile(info, io.BytesIO(content))


def _leave_out_compiled(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if info.name.endswith("__pycache__") else info


def _write_script(command: Sequence[str], promised: str) -> bytes:
    home = f"{_FOLDER}/home"
    given = {"PYTHONPATH": f"{_FOLDER}/site", "VMFORK_TEST_HOME": home, "VMFORK_HOME": home}
    given["VMFORK_TEST_GUARANTEED"] = f"{promised},{_OF_HOSTS}"
    exports = "".join(f"export {name}={value}\n" for name, value in given.items())
    return f"{exports}cd {_FOLDER}/project && exec {shlex.join(command)}\n".encode()

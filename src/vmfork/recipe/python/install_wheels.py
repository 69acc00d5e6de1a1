"""Installs wheels into the Python that runs this, with its standard library alone, and without a network.

The first argument is a folder of wheels. As the "Binary distribution format" of packaging.python.org says: `purelib` or
`platlib` by WHEEL's Root-Is-Purelib, what is in NAME.data/ to its scheme's place, `#!python` of scripts to this Python,
a script for each console entry point, and RECORD of what was written. Another version of the same package that was
installed in the same place is removed first.
"""

from __future__ import annotations

import base64
import configparser
import csv
import email.parser
import hashlib
import importlib.metadata
import importlib.util
import io
import os
import re
import sys
import sysconfig
import zipfile

SCRIPT = """#!{python}
import sys
from {module} import {first}
if __name__ == "__main__":
    sys.exit({function}())
"""


def main(folder: str) -> None:
    for name in sorted(os.listdir(folder)):
        if name.endswith(".whl"):
            with zipfile.ZipFile(os.path.join(folder, name)) as wheel:
                install(name, wheel)


def install(name: str, wheel: zipfile.ZipFile) -> None:
    (info,) = {path.partition("/")[0] for path in wheel.namelist() if path.partition("/")[0].endswith(".dist-info")}
    said = email.parser.Parser().parsestr(wheel.read(f"{info}/WHEEL").decode())
    if not said["Wheel-Version"].startswith("1."):
        raise SystemExit(f"{name} is of wheel version {said['Wheel-Version']}, and this knows 1")
    paths = sysconfig.get_paths()
    root = paths["purelib" if said["Root-Is-Purelib"].strip().lower() == "true" else "platlib"]
    about = email.parser.Parser().parsestr(wheel.read(f"{info}/METADATA").decode())
    remove_former(about["Name"], root)
    record: list[tuple[str, str, object]] = []
    data = info.removesuffix(".dist-info") + ".data"
    for member in wheel.infolist():
        if member.is_dir() or member.filename == f"{info}/RECORD":
            continue
        top, _, rest = member.filename.partition("/")
        scheme, _, inside = rest.partition("/")
        content = wheel.read(member)
        is_script = top == data and scheme == "scripts"
        if top == data:
            place = {"headers": os.path.join(paths["include"], about["Name"])}.get(scheme) or paths[scheme]
        else:
            place, inside = root, member.filename
        if is_script and content.startswith(b"#!python"):
            content = b"#!" + sys.executable.encode() + content[content.index(b"\n") :]
        # Of a mode a wheel means that a file is a program, no more.
        is_program = is_script or member.external_attr >> 16 & 0o111
        record.append(write(place, inside, content, 0o755 if is_program else 0o644, root))
    for script, target in entry_points(wheel, info):
        record.append(write(paths["scripts"], script, make_script(target), 0o755, root))
    record.append(write(root, f"{info}/INSTALLER", b"vmfork\n", 0o644, root))
    record.append((f"{info}/RECORD", "", ""))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(record)
    write(root, f"{info}/RECORD", text.getvalue().encode(), 0o644, root)


def write(place: str, inside: str, content: bytes, mode: int, root: str) -> tuple[str, str, object]:
    """The file is there, and its line of RECORD."""
    path = os.path.normpath(os.path.join(place, inside))
    if not path.startswith(os.path.normpath(place) + os.sep):
        raise SystemExit(f"a wheel has {inside!r}, which leads out of {place}")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    discard(path)
    with open(path, "wb") as file:
        file.write(content)
    os.chmod(path, mode)
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return os.path.relpath(path, root), f"sha256={digest}", len(content)


def entry_points(wheel: zipfile.ZipFile, info: str) -> list[tuple[str, str]]:
    if f"{info}/entry_points.txt" not in wheel.namelist():
        return []
    found = configparser.ConfigParser(delimiters=("=",), interpolation=None)
    found.optionxform = str  # type: ignore[assignment,method-assign]
    found.read_string(wheel.read(f"{info}/entry_points.txt").decode())
    return found.items("console_scripts") if found.has_section("console_scripts") else []


def make_script(target: str) -> bytes:
    module, _, function = re.sub(r"\[.*", "", target).strip().partition(":")
    function = function.strip()
    first = function.partition(".")[0]
    return SCRIPT.format(python=sys.executable, module=module.strip(), first=first, function=function).encode()


def remove_former(name: str, root: str) -> None:
    """No version of the package is in `root`; one of the distribution's elsewhere stays, and comes behind."""
    for found in importlib.metadata.distributions(name=name, path=[root]):
        for file in found.files or ():
            discard(os.path.normpath(os.path.join(root, str(file))))


def discard(path: str) -> None:
    """No such file is there, nor its bytecode: Python takes that for another source's of the same size and second."""
    cached = [importlib.util.cache_from_source(path)] if path.endswith(".py") else []
    for each in (path, *cached):
        if os.path.lexists(each):
            os.remove(each)


if __name__ == "__main__":
    main(sys.argv[1])

"""Wheels that tests make themselves: no package index is asked."""

from __future__ import annotations

import zipfile
from pathlib import Path


def make_wheel(
    folder: Path,
    name: str,
    version: str = "1.0",
    *,
    tag: str = "py3-none-any",
    files: dict[str, str] | None = None,
    needs: tuple[str, ...] = (),
    extras: tuple[str, ...] = (),
    scripts: str = "",
) -> Path:
    """A wheel of a package with one module of its name, and of `files`; {info} and {data} are its own folders."""
    info, data = f"{name}-{version}.dist-info", f"{name}-{version}.data"
    said = "".join(f"Requires-Dist: {each}\n" for each in needs)
    said += "".join(f"Provides-Extra: {each}\n" for each in extras)
    content = {
        f"{name}.py": f'VERSION = "{version}"\n\n\ndef main():\n    print("{name}", VERSION)\n',
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{said}",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n",
        **({f"{info}/entry_points.txt": f"[console_scripts]\n{scripts}\n"} if scripts else {}),
        **{path.format(info=info, data=data): text for path, text in (files or {}).items()},
    }
    path = folder / f"{name}-{version}-{tag}.whl"
    record = "".join(f"{each},,\n" for each in (*content, f"{info}/RECORD"))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for inside, text in {**content, f"{info}/RECORD": record}.items():
            wheel.writestr(inside, text)
    return path

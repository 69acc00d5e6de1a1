"""Says what this Python is, as JSON: what wheels for it have to fit, and what markers of requirements ask for.

`environment` has the names and values of "Environment Markers" in "Dependency specifiers" of packaging.python.org.
"""

from __future__ import annotations

import glob
import json
import os
import platform
import subprocess
import sys


def find_libc() -> str:
    """What the C library says of its version; musl does where its loader is run alone, and nowhere else."""
    if "CS_GNU_LIBC_VERSION" in os.confstr_names and (name := os.confstr("CS_GNU_LIBC_VERSION")):
        return name
    loaders = sorted(glob.glob("/lib/ld-musl-*.so.1"))
    return subprocess.run(loaders[:1], check=False, env={}, stderr=subprocess.PIPE).stderr.decode() if loaders else ""


def read_environment() -> dict[str, str]:
    major, minor, micro, level, serial = sys.implementation.version
    return {
        "implementation_name": sys.implementation.name,
        "implementation_version": f"{major}.{minor}.{micro}" + ("" if level == "final" else f"{level[0]}{serial}"),
        "os_name": os.name,
        "platform_machine": platform.machine(),
        "platform_release": platform.release(),
        "platform_system": platform.system(),
        "platform_version": platform.version(),
        "python_full_version": platform.python_version(),
        "platform_python_implementation": platform.python_implementation(),
        "python_version": ".".join(platform.python_version_tuple()[:2]),
        "sys_platform": sys.platform,
    }


if __name__ == "__main__":
    print(json.dumps({"libc": find_libc(), "environment": read_environment()}))  # noqa: T201

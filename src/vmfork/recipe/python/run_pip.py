"""Runs the pip of this Python, which decides by markers as if the Python of a guest ran it.

The arguments are that Python's environment as describe.py writes it, and those of pip. `pip download` has options for
which Python wheels are looked for, and none for which one `; python_version >= "3.13"` is decided (pypa/pip #11010).
All that decides in it asks `default_environment` of the `packaging` that it brings: so in pip 23.0, 23.2, 24.2 and
26.3, and relied on by pex too. Where that is not so this ends with status 70 and does not run pip.
"""

# With `-c` the current folder is the first that is looked in, and it is a recipe's: its files have any name.
# These two have been imported when a Python begins.
import os
import sys

sys.path[:] = [place for place in sys.path if place not in ("", os.getcwd())]

import json  # noqa: E402
import runpy  # noqa: E402

CANNOT_BE_TOLD = 70


def tell(environment: "dict[str, str]") -> None:
    """All markers are decided by the environment. Raises `AttributeError` when pip does not ask there."""
    for sys_platform in ("no-such", environment["sys_platform"]):
        # A copy each time: who asks writes into it.
        markers.default_environment = dict(environment, sys_platform=sys_platform).copy
        asked = requirements.Requirement(f'any; sys_platform == "{sys_platform}"')
        if not asked.marker.evaluate():
            raise AttributeError("default_environment")


if __name__ == "__main__":
    try:
        from pip._vendor.packaging import markers, requirements

        tell(json.loads(sys.argv[1]))
    except (ImportError, AttributeError) as error:
        sys.stderr.write(f"{sys.executable}: {error}\n")
        sys.exit(CANNOT_BE_TOLD)
    # A pip that is set to work for another Python of this host (`PIP_PYTHON`) would begin anew there, untold.
    os.environ["_PIP_RUNNING_IN_SUBPROCESS"] = "1"
    sys.argv = ["pip", *sys.argv[2:]]
    runpy.run_module("pip", run_name="__main__", alter_sys=True)

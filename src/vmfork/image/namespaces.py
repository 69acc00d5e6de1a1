"""Where the packages' own scripts run: in namespaces of their own, as root there.

Root of the host is root in them too, apart from the host's mounts, processes and name. An ordinary user is mapped to
root, and to no other user: what needs others, such as `chown`, is kept by fakeroot (install/dpkg). That takes neither
`newuidmap` nor entries in /etc/subuid, and leaves no file that the user cannot remove.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from typing import Literal

from vmfork.errors import HostError
from vmfork.host import facts
from vmfork.host.environ import bare_environ

_HOST_NAME = "vmfork"
_PROBE_LIMIT_S = 10.0


@dataclass(frozen=True, slots=True)
class Namespaces:
    """With `argv` before it a command runs in the namespaces. When it is killed, so is all that runs there.

    With `real` ids files can belong to every user there; with `faked` ones fakeroot keeps whose they are.
    """

    argv: tuple[str, ...]
    ids: Literal["real", "faked"]


def choose_namespaces() -> Namespaces:
    """The namespaces that this process can make. Raises `HostError` when it can make none, and is not root either."""
    real = os.geteuid() == 0 and facts.has_all_ids()
    options = () if real else ("--user", "--map-root-user")
    argv = ("unshare", *options, "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child")
    if _try_out(argv):
        # The shell is the first process there and reaps what others leave behind, which fakeroot waits for.
        name = f'hostname {_HOST_NAME}; "$@"; exit $?'
        return Namespaces((*argv, "sh", "-c", name, "sh"), "real" if real else "faked")
    if real:
        return Namespaces((), "real")  # root of a container that may only chroot
    raise HostError(
        "an image is built in a user namespace, and this host lets this user have none",
        hint="build as root, or allow them: sysctl user.max_user_namespaces=10000 "
        "(Ubuntu: sysctl kernel.apparmor_restrict_unprivileged_userns=0)",
    )


def _try_out(argv: tuple[str, ...]) -> bool:
    if shutil.which("unshare") is None:
        raise HostError("the program unshare was not found", hint="install it: apt-get install util-linux")
    try:
        done = subprocess.run(
            [*argv, "true"], capture_output=True, timeout=_PROBE_LIMIT_S, check=False, env=bare_environ()
        )
    except subprocess.TimeoutExpired:
        raise HostError(
            f"the host did not start a program in namespaces within {_PROBE_LIMIT_S:g} s",
            hint="it is too busy: try again",
        ) from None
    return done.returncode == 0

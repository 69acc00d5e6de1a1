"""What is told of a KVM that does not run the guest: QEMU's complaint, not the dump behind it."""

from __future__ import annotations

import pytest

from vmfork.errors import LaunchError
from vmfork.machine.accelerator import _explain_failure

DUMP = "KVM internal error. Suberror: 1\nemulation failure\nEAX=00000000 EBX=00000000\nCode=05 83 fa 0f"


@pytest.mark.parametrize(
    ("log", "told"),
    [
        (DUMP, "silence: KVM internal error. Suberror: 1"),
        (
            "\nqemu: warning: no such feature\nqemu: failed to set MSR 0x48\nqemu: Assertion failed",
            "silence: qemu: failed to set MSR 0x48",
        ),
        ("qemu: warning: no such feature\n", "silence"),
        ("", "silence"),
    ],
)
def test_the_first_complaint_is_told(log, told) -> None:
    assert _explain_failure(LaunchError("silence", log_tail=log)) == told

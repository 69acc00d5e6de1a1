"""Wheels are asked for by the C library of the guest's Python."""

from __future__ import annotations

from vmfork.recipe.wheels import GuestPython


def platforms(python: GuestPython) -> list[str]:
    options = python.to_options()
    return [options[at + 1] for at, option in enumerate(options) if option == "--platform"]


def test_wheels_for_musl_are_those_of_its_version_and_of_older_ones():
    assert platforms(GuestPython(3, 13, "x86_64", None, 2)) == [
        "musllinux_1_2_x86_64", "musllinux_1_1_x86_64", "musllinux_1_0_x86_64", "linux_x86_64",
    ]  # fmt: skip


def test_wheels_for_glibc_have_older_names_too():
    found = platforms(GuestPython(3, 11, "x86_64", 36))
    assert found[0] == "manylinux_2_36_x86_64"
    assert "manylinux2014_x86_64" in found


def test_of_another_library_only_what_says_no_library_fits():
    assert platforms(GuestPython(3, 11, "x86_64", None)) == ["linux_x86_64"]

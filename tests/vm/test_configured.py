"""Commands that open a template do it for the emulator that the configuration names."""

from __future__ import annotations

import pytest

from tests.vm.cli_runner import vmfork

pytestmark = pytest.mark.vm


@pytest.mark.parametrize(
    "command",
    [
        ("template", "verify", "NAME"),
        ("template", "save", "NAME", "saved.tar"),
        ("template", "push", "NAME", "127.0.0.1:1/nobody:1"),
        ("template", "persist", "NAME"),
        ("diff", "NAME", "NAME"),
        ("run", "-t", "NAME", "--", "true"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_a_template_is_opened_for_the_emulator_of_the_configuration(command, template_name, instance, tmp_path) -> None:
    (tmp_path / "vmfork.toml").write_text('[vm]\nqemu = "/no/such/qemu"\n')
    refused = vmfork(*(template_name if word == "NAME" else word for word in command), cwd=tmp_path)
    assert refused.status == (125 if command[0] == "run" else 2)
    assert "/no/such/qemu" in refused.err
    assert [path.name for path in tmp_path.iterdir()] == ["vmfork.toml"]

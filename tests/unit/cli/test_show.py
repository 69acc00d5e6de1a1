"""What a guest says reaches the terminal as words."""

from __future__ import annotations

from vmfork.cli.show import print_failure, show_table

# Colours, a title, a cleared screen, a bell, a carriage return that hides what came before.
RUDE = "\x1b[31mred\x1b]0;title\x07\x1b[2J\x07 over\rwritten\x9b1m\x00"


def test_an_error_with_a_guests_words_has_no_control_characters(capsys) -> None:
    print_failure(f"it said {RUDE}", f"look at {RUDE}", f"line one\n{RUDE}")
    said = capsys.readouterr().err
    assert said.startswith("error: it said red")
    assert "line one\nred" in said
    assert all(char.isprintable() or char == "\n" for char in said)


def test_a_table_has_none_either(capsys) -> None:
    show_table(("NAME", "VALUE"), [("kernel", RUDE)])
    said = capsys.readouterr().out
    assert all(char.isprintable() or char == "\n" for char in said)

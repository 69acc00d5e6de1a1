"""A list of servers is their addresses, or a file of them."""

from __future__ import annotations

import pytest

from vmfork.config.servers import read_servers
from vmfork.errors import ConfigError

MANY = tuple(f"host-{number:03}.rack.example.com:7300" for number in range(300))


def test_as_many_as_there_are_can_be_named_at_once() -> None:
    """No file has so long a name."""
    assert read_servers(",".join(MANY)) == MANY


def test_a_file_has_one_in_each_line(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "servers").write_text("# all\n" + "\n".join(f"{server}  # is up" for server in MANY))
    assert read_servers("servers") == read_servers(str(tmp_path / "servers")) == MANY


@pytest.mark.parametrize("given", ["", ",", "host", "host:0", "a/b:1", "x" * 5000])
def test_what_names_no_server_is_refused(given) -> None:
    with pytest.raises(ConfigError) as told:
        read_servers(given)
    assert told.value.field == "servers"

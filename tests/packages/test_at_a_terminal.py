"""An editor in a guest, used as at any terminal; in `make test-packages`, because it needs an image of its own."""

from __future__ import annotations

import pytest

from tests.at_tmux import AtTmux
from tests.packages.acts import open_template
from tests.vm.cli_runner import COMMAND
from vmfork.image import ImageStore

pytestmark = [pytest.mark.vm, pytest.mark.image, pytest.mark.limit_s(1800), pytest.mark.needs("tmux")]


async def test_vim_fills_a_window_of_tmux_follows_it_and_writes(instance, tmp_path) -> None:
    template = await open_template("editing", ("vim-tiny",), instance)
    try:
        edit = f"{' '.join(COMMAND)} run -it -t editing -- sh -c 'vi -u NONE note && cat note'"
        with AtTmux(tmp_path, f"{edit}; echo ended with $?; exec sleep 600", rows=20, columns=90) as window:
            assert window.wait_for('"note"').count("~\n") == 18  # all lines but that of the cursor, and the last
            window.resize(rows=12, columns=60)
            window.type(":set lines? columns?", "Enter")
            assert "columns=60" in window.wait_for("lines=12")
            window.type("Enter", "ione", "Enter", "two", "Escape", ":wq", "Enter")
            assert "one\ntwo\n" in window.wait_for("ended with 0")
    finally:
        await template.remove()
        ImageStore(instance.images).remove("editing")

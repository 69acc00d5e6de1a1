"""Logs that a program reads: each line is an object, and says which machine, which template, and what happened."""

from __future__ import annotations

import json
import logging
import re
import warnings
from pathlib import Path

from vmfork.cli.logs import json_lines
from vmfork.journal import FIELDS, about
from vmfork.progress import Progress

ROOT = Path(__file__).parents[3]
_log = logging.getLogger("vmfork.factory.cache")


def test_every_line_is_an_object_with_the_fields_that_the_record_has(capsys) -> None:
    root = logging.getLogger()
    before = list(root.handlers)
    with json_lines() as progress:
        _log.warning("%s is\nreplaced", "VM", extra=about("pool.replaced", vm_id="0123456789ab", template="web"))
        _log.debug("nobody asked for this")
        progress(Progress(task="template", step="booting"))
        logging.getLogger("asyncio").error("something of another library")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("a machine was not closed", ResourceWarning, stacklevel=1)
        try:
            int("a bug")
        except ValueError:
            _log.exception("it failed", extra=about("base.failed", error="bug", took_s=1.5))
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["level"] for line in lines] == ["warning", "info", "error", "warning", "error"]
    assert lines[0]["message"] == "VM is\nreplaced"
    assert (lines[0]["event"], lines[0]["vm_id"], lines[0]["template"]) == ("pool.replaced", "0123456789ab", "web")
    assert "error" not in lines[0]
    assert (lines[1]["event"], lines[1]["message"]) == ("progress", "template: booting")
    assert "event" not in lines[2]
    assert "was not closed" in lines[3]["message"]
    assert (lines[4]["error"], lines[4]["took_s"]) == ("bug", 1.5)
    assert "ValueError: invalid literal" in lines[4]["traceback"]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", line["time"]) for line in lines)
    assert root.handlers == before


def test_what_there_is_nothing_to_say_of_is_left_out() -> None:
    assert about("progress") == {"event": "progress"}
    assert set(about("x", vm_id="1", template="2", error="3", took_s=4)) == set(FIELDS)


def test_the_page_lists_the_events_of_the_code() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "src" / "vmfork").rglob("*.py"))
    told = set(re.findall(r'about\(\s*"([a-z.-]+)"', sources)) | set(re.findall(r'"(machine\.[a-z]+)"', sources))
    page = (ROOT / "docs" / "reference" / "logs.md").read_text().split("| event |")[1]
    rows = [line.split("| ")[1] for line in page.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`([a-z.-]+)`", row)} == told

"""`vmfork run` takes files and folders in, and brings what was made out, whatever became of the command."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from tests.vm.cli_runner import Outcome, left_of, vmfork

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.vm


@pytest.fixture
def run(template_name, instance, tmp_path):
    """`vmfork run -t` the template of the test run, in a folder of the test's own."""

    def run_in_fork(*argv: str) -> Outcome:
        return vmfork("run", "-t", template_name, *argv, cwd=tmp_path)

    yield run_in_fork
    assert left_of(instance.runtime) == []


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "numbers").write_text("1\n2\n")
    (folder / "count").write_text("#!/bin/sh\nmkdir out; wc -l < data/numbers > out/lines; echo made; exit $1\n")
    (folder / "count").chmod(0o750)
    return folder


def test_a_folder_goes_in_with_modes_and_its_result_comes_out_also_of_a_command_that_failed(run, project) -> None:
    for status in (0, 3):
        there = ("--file", f"{project}:/srv/deep/project", "-w", "/srv/deep/project")
        done = run(*there, "--out", f"/srv/deep/project/out:result-{status}", "--", "./count", str(status))
        assert (done.status, done.out) == (status, "made\n"), done
        assert (project.parent / f"result-{status}" / "lines").read_text() == "2\n"
    done = run("--out", "/etc/hostname", "--timeout", "1", "sleep", "60")
    assert done.status == 124
    assert (project.parent / "hostname").read_text().strip()


def test_what_is_missing_is_told_and_what_is_there_comes(run, tmp_path: Path) -> None:
    outs = ("--out", "/root/none", "--out", "/etc/hostname:there")
    failed, ended = run(*outs, "true"), run(*outs, "--json", "sh", "-c", "exit 7")
    assert failed.status == 125
    assert "error: copying from /root/none: No such file" in failed.err
    assert (tmp_path / "there").exists()
    told = json.loads(ended.raw)
    assert (ended.status, told["exit_code"], told["error"]) == (7, 7, None)
    assert [(out["host"], out["error"] and out["error"]["code"]) for out in told["out"]] == [
        ("none", "guest-file"),
        ("there", None),
    ]


@pytest.mark.parametrize("out", ["relative", "/etc/hostname:no/such/folder/x", ""])
def test_a_place_that_is_none_is_refused_before_anything_runs(run, out: str) -> None:
    done = run("--out", out, "true")
    assert done.status == 125
    assert "out" in done.err
    assert "hint: " in done.err


def test_a_guest_that_sends_more_than_a_copy_leaves_what_is_here(run, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept")
    (tmp_path / "out").write_text("a file")
    evil = "mkdir -p /root/out; ln -s /etc/passwd /root/out/kept"
    done = run("--out", "/root/out:.", "sh", "-c", evil)
    assert done.status == 125
    assert "leads out" in done.err
    done = run("--out", "/root/out", "mkdir", "/root/out")
    assert done.status == 125
    assert "no folder" in done.err
    assert sorted(os.listdir(tmp_path)) == ["kept", "out"]
    assert (tmp_path / "kept").read_text() == "kept"

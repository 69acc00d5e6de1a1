"""A template made under TCG is not used without a word where KVM is: forbidden, or there since it was made."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from vmfork.config import Instance, Places, VMConfig
from vmfork.errors import ImageNotFound
from vmfork.host import kvm
from vmfork.host.kvm import Refusal
from vmfork.machine.verdict import Verdict, keep_verdict, locate_verdict
from vmfork.template import source
from vmfork.template.source import Source

IMAGE, BINARY = SimpleNamespace(digest="image"), SimpleNamespace(stamp="1", version="7.2.22")
MODEL = "host,migratable=on"


@pytest.fixture
def warn(tmp_path, monkeypatch, caplog):
    """Opens a template made under TCG, twice, on a host with that refusal, and one verdict; what was said of it."""

    def warn(
        *, refusal: Refusal | None = None, verdict: Verdict | None = None, image=IMAGE, model=MODEL, machine="q35"
    ) -> list[str]:
        def open_image(_store, name):
            if image is None:
                raise ImageNotFound(name)
            return image

        monkeypatch.setattr(kvm, "find_refusal", lambda: refusal)
        monkeypatch.setattr(source.ImageStore, "open", open_image)
        kvm.warn_if_forbidden.cache_clear()
        source._warn_of_age.cache_clear()
        places = Places(home=tmp_path, runtime=tmp_path)
        if verdict is not None:
            path = locate_verdict(image=IMAGE, binary=BINARY, machine=machine, cpu_model=model, places=places)
            keep_verdict(verdict, path)
        traits = {"machine": "pc-q35-7.2"}
        manifest = SimpleNamespace(name="py", image="default", came_from="", traits=traits)
        with caplog.at_level(logging.WARNING, "vmfork"):
            for _ in range(2):
                Source(manifest, VMConfig(), Instance(places))._warn_of_tcg(BINARY)
        return [record.getMessage() for record in caplog.records]

    yield warn
    kvm.warn_if_forbidden.cache_clear()
    source._warn_of_age.cache_clear()


def test_who_may_not_open_the_device_is_told_once(warn) -> None:
    (said,) = warn(refusal=Refusal("/dev/kvm may not be opened by me", "sudo usermod", forbidden=True))
    assert "may not be opened by me: TCG is used" in said
    assert "sudo usermod" in said


def test_where_kvm_runs_the_guest_by_now_that_is_told_once(warn) -> None:
    (said,) = warn(verdict=Verdict(usable=True, reason=""))
    assert "was built under TCG" in said
    assert "vmfork template build py --replace" in said


@pytest.mark.parametrize(
    "found",
    [
        {"refusal": Refusal("/dev/kvm does not exist")},
        {"verdict": None},
        {"verdict": Verdict(usable=False, reason="it hangs")},
        {"verdict": Verdict(usable=True, reason=""), "model": "EPYC"},
        {"verdict": Verdict(usable=True, reason=""), "machine": "microvm"},
        {"verdict": Verdict(usable=True, reason=""), "image": None},
    ],
)
def test_where_nothing_is_known_to_be_better_nothing_is_said(warn, found) -> None:
    assert warn(**found) == []

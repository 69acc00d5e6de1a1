"""Every error: a code of its own, a hint where the caller can act, fields that stay readable, whole copies."""

from __future__ import annotations

import copy
import pickle
import traceback

import pytest

from vmfork import errors

# One of each, with every field that it has. A class that is missing here fails the test.
SAMPLES = {
    errors.VMForkError: errors.VMForkError("it failed", hint="try again"),
    errors.ConfigError: errors.ConfigError("vm.cpus", 0, "must be 1 or more", hint="give 1"),
    errors.HostError: errors.HostError("no QEMU", hint="install it", log="the log"),
    errors.NoRoom: errors.NoRoom("memory", "128 MiB are needed", log="the arithmetic", waited_s=1.5, hint="wait"),
    errors.ImageError: errors.ImageError("not built", hint="look", log="the log"),
    errors.ImageNotFound: errors.ImageNotFound("a b"),
    errors.ImageCorrupt: errors.ImageCorrupt("a b", "the kernel is missing"),
    errors.ImageExists: errors.ImageExists("py"),
    errors.ImageInUse: errors.ImageInUse("a b", ["py", "web"]),
    errors.LaunchError: errors.LaunchError(
        "QEMU ended", argv=["qemu", "-m"], exit_code=1, log_tail="bad option", console_tail="panic", hint="look"
    ),
    errors.GuestError: errors.GuestError("no answer", hint="look", console_tail="panic"),
    errors.ExecError: errors.ExecError(["a", "b c"], 9, "failed", stdout=b"out", stderr=b"err", hint="look"),
    errors.CodeError: errors.CodeError("ValueError", "no", "Traceback\n", stdout="out", stderr="err"),
    errors.GuestFileError: errors.GuestFileError("read", "/x", "not-found", "no such file"),
    errors.PortError: errors.PortError(80, "refused", "nothing listens there", hint="wait"),
    errors.LimitExceeded: errors.LimitExceeded(
        "reading /x", 3, content=b"abc", stdout=b"o", stderr=b"e", hint="stream it"
    ),
    errors.MachineEnded: errors.MachineEnded(-9, log_tail="bad option", console_tail="panic", hint="take another"),
    errors.RolledBack: errors.RolledBack("0123456789ab"),
    errors.ProtocolError: errors.ProtocolError("nonsense", hint="build again"),
    errors.HookError: errors.HookError("/etc/hook", "exit status 1", output=b"said", hint="mend it"),
    errors.SecretsPresent: errors.SecretsPresent(["/root/.netrc"]),
    errors.AdoptError: errors.AdoptError("entropy", "refused", hint="look", console_tail="panic", output=b"said"),
    errors.SetupError: errors.SetupError("hook /etc/x", "exit status 1", hint="mend it", output=b"said"),
    errors.TemplateError: errors.TemplateError("py", "something is wrong", hint="look"),
    errors.TemplateNotFound: errors.TemplateNotFound("a b"),
    errors.TemplateExists: errors.TemplateExists("py"),
    errors.TemplateStale: errors.TemplateStale("a b", "qemu.version", "7.2.1", "7.2.2"),
    errors.TemplateUnfit: errors.TemplateUnfit("a b", "qemu.version", "7.2.1", "7.2.2", source="a.tar"),
    errors.ArtifactError: errors.ArtifactError("a.tar", "it was cut off"),
    errors.TemplateCorrupt: errors.TemplateCorrupt("a b", "memory", "is too short"),
    errors.TemplateElsewhere: errors.TemplateElsewhere("a b", "process 7 (python)"),
    errors.FallbackRefused: errors.FallbackRefused("template-not-found", "no template is named 'py'"),
    errors.FitError: errors.FitError("4 CPUs", "CPU 2 is broken", left="CPU 1 (busy)", log="the log"),
    errors.ClusterError: errors.ClusterError("the engine said no", hint="look"),
    errors.NodeLost: errors.NodeLost("a1", ["0123456789ab"], "its process ended"),
    errors.NodeRefused: errors.NodeRefused("a:1", "the token is another", hint="give that of the server"),
    errors.NoNode: errors.NoNode("2 of 2: it has no label zone=x", reasons={"it has no label": 2}, hint="take another"),
    errors.VMNotFound: errors.VMNotFound("0123456789ab", "it ended"),
    errors.VMExists: errors.VMExists("web", "0123456789ab"),
    errors.NotOwner: errors.NotOwner("detach it", "0123456789ab"),
    errors.StoreBusy: errors.StoreBusy("template py", "pid 7"),
    errors.DeadlineExceeded: errors.DeadlineExceeded("exec", 1.5, hint="wait", stdout=b"o", stderr=b"e", detail="log"),
    errors.WrongContext: errors.WrongContext("VM 1", "belongs to another event loop", hint="make it here"),
    errors.Closed: errors.Closed("the machine", "QEMU ended"),
    errors.InternalError: errors.InternalError("TypeError: nonsense"),
}


@pytest.mark.parametrize("error", SAMPLES.values(), ids=lambda error: type(error).__name__)
def test_a_traceback_shows_details_and_hint_below_the_message(error) -> None:
    error = copy.copy(error)
    error.add_note("seen in a test")
    shown = "".join(traceback.format_exception(error))
    assert str(error) in shown
    assert error.details().rstrip() in shown
    assert not error.hint or f"hint: {error.hint}" in shown
    assert shown.rstrip().endswith("seen in a test")
    assert "seen in a test" in "".join(traceback.format_exception(pickle.loads(pickle.dumps(error))))


def test_a_hint_speaks_the_language_of_its_reader() -> None:
    for error in (errors.TemplateNotFound("a b"), errors.TemplateStale("a b", "accel", "kvm", "tcg")):
        assert "Template.build('a b'" in error.hint
        assert "vmfork template build 'a b'" in error.hint.command
        again = pickle.loads(pickle.dumps(error))
        assert (again.hint, again.hint.command) == (error.hint, error.hint.command)


# These say what to do without being told by whoever raises them.
ALWAYS_WITH_HINT = [
    errors.ImageNotFound,
    errors.ImageCorrupt,
    errors.ImageExists,
    errors.ImageInUse,
    errors.SecretsPresent,
    errors.TemplateNotFound,
    errors.TemplateExists,
    errors.TemplateStale,
    errors.TemplateUnfit,
    errors.ArtifactError,
    errors.TemplateCorrupt,
    errors.FallbackRefused,
    errors.FitError,
    errors.InternalError,
    errors.VMNotFound,
    errors.StoreBusy,
]


def all_errors() -> list[type[errors.VMForkError]]:
    return [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.VMForkError)]


def test_there_is_a_sample_of_each() -> None:
    assert set(SAMPLES) == set(all_errors())


def test_codes_are_unique_own_and_kebab_case() -> None:
    # A program that asks for the code of an `AdoptError` is to find those that are now told apart as well.
    codes = [vars(kind).get("code", "") for kind in all_errors() if kind is not errors.SetupError]
    assert errors.SetupError.code == errors.AdoptError.code
    assert len(set(codes)) == len(codes)
    assert all(code and code.replace("-", "").isalpha() and code == code.lower() for code in codes)


@pytest.mark.parametrize("kind", ALWAYS_WITH_HINT, ids=lambda kind: kind.__name__)
def test_hint_where_promised(kind) -> None:
    assert SAMPLES[kind].hint


@pytest.mark.parametrize("name", ["ImageNotFound", "ImageCorrupt", "TemplateNotFound", "TemplateStale"])
def test_a_command_in_a_hint_can_be_pasted(name) -> None:
    assert "build 'a b'" in getattr(SAMPLES[getattr(errors, name)].hint, "command", SAMPLES[getattr(errors, name)].hint)


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
@pytest.mark.parametrize("kind", SAMPLES, ids=lambda kind: kind.__name__)
def test_a_copy_is_whole(kind, again) -> None:
    error = SAMPLES[kind]
    twin = again(error)
    assert twin is not error
    assert type(twin) is kind
    assert vars(twin) == vars(error)
    assert (str(twin), twin.args, twin.details(), twin.code) == (str(error), error.args, error.details(), error.code)


def test_notes_survive_a_copy() -> None:
    error = errors.Closed("it")
    error.add_note("while closing")
    assert pickle.loads(pickle.dumps(error)).__notes__ == ["while closing"]


def test_a_deadline_is_a_timeout_too() -> None:
    assert isinstance(SAMPLES[errors.DeadlineExceeded], TimeoutError)
    assert not issubclass(errors.VMForkError, OSError)


def test_what_any_other_machine_would_meet_as_well_is_not_mendable() -> None:
    """The factory takes another machine, or boots one, for what is mendable: it must not hide the user's own faults."""
    told = {kind for kind in all_errors() if not kind.mendable}
    users = {
        errors.CodeError, errors.ConfigError, errors.ExecError, errors.HookError, errors.LimitExceeded,
        errors.SecretsPresent, errors.SetupError,
    }  # fmt: skip
    users |= {errors.WrongContext, errors.InternalError, errors.VMExists, errors.NotOwner}
    users |= {errors.NoRoom}  # one that is booted in its place takes more
    users |= {errors.NoNode, errors.NodeRefused}  # nor has, nor lets us in, any other node
    users |= {errors.ArtifactError}  # what it was read from is the same the next time
    images = {errors.ImageError, errors.ImageNotFound, errors.ImageCorrupt, errors.ImageExists, errors.ImageInUse}
    assert told == users | images | {errors.VMForkError}


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    drawn: dict[str, str] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").split("```")[1].strip().splitlines():
        depth = line.find("── ") // 4 + 1 if "── " in line else 0
        name = line.lstrip("│├└─ ").split()[0]
        above[depth:] = [name]
        if depth:
            drawn[name] = above[depth - 1]
    assert drawn == {
        kind.__name__: kind.__bases__[0].__name__ for kind in all_errors() if kind.__bases__[0] is not Exception
    }

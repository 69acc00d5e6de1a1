"""Fuzzes what strangers speak to: the host's client (atheris); agent, keeper and broker (libFuzzer, ASan and UBSan).

    python tools/fuzz.py [--seconds N] [--keep] [host|agent|keeper|broker]...

Each target runs for N seconds (600), one after the other, at the lowest priority, from its folder in tests/fuzz/corpus.
What is found comes into build/fuzz: inputs that reach new code, and `crash-*`, `leak-*`, `timeout-*`. With --keep those
that reach something the committed ones do not are added to them. Fails when a target failed, or a tool is missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FUZZ = ROOT / "tests" / "fuzz"
BUILD = ROOT / "build" / "fuzz"
FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-g", "-O1", "-fno-omit-frame-pointer"]
SANITIZE = ["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"]
# A larger input reaches nothing that these do not, and is slower.
LONGEST = 4096


@dataclass(frozen=True, slots=True)
class Program:
    """Its sources in `folder`, but for those that the target replaces or includes itself; `borrowed` are others."""

    folder: str
    replaced: frozenset[str]
    borrowed: tuple[str, ...] = ()


_OF_BROKER = ("broker.c", "kept.c", "stream.c", "halt.c", "ending.c", "owner.c", "release.c", "serve.c")
PROGRAMS = {
    "agent": Program("guest", frozenset(("main.c", "connection.c"))),
    "keeper": Program("keeper", frozenset(("keeper.c", "watch.c"))),
    "broker": Program(
        "broker",
        frozenset(_OF_BROKER),
        ("guest/frame.c", "guest/buffer.c", "guest/fields.c", "guest/number.c", "keeper/message.c"),
    ),
}
TARGETS = ("host", *PROGRAMS)


def find_clang() -> str | None:
    """A clang that has libFuzzer."""
    for name in ("clang", *(f"clang-{version}" for version in range(25, 13, -1))):
        if (path := shutil.which(name)) is not None:
            source = "int LLVMFuzzerTestOneInput(const char *b, unsigned long n) { return b == 0 && n; }"
            argv = [path, "-x", "c", "-fsanitize=fuzzer", "-", "-o", os.devnull]
            if subprocess.run(argv, input=source, text=True, capture_output=True, check=False).returncode == 0:
                return path
    return None


def list_missing(targets: list[str]) -> list[str]:
    missing = []
    if set(targets) & set(PROGRAMS) and find_clang() is None:
        missing.append("a clang with libFuzzer: apt-get install clang libclang-rt-14-dev (Debian 12)")
    if "agent" in targets and os.geteuid() != 0:
        missing.append("root: the agent does what it is asked for, so it gets a root folder and a user of its own")
    if "host" in targets and importlib.util.find_spec("atheris") is None:
        missing.append("atheris: .venv/bin/pip install atheris")
    return missing


def sources_of(target: str) -> list[Path]:
    program = PROGRAMS[target]
    own = [path for path in sorted((ROOT / program.folder).glob("*.c")) if path.name not in program.replaced]
    return own + [ROOT / path for path in program.borrowed]


def command_of(target: str) -> list[str]:
    """What runs the target; libFuzzer's arguments follow."""
    if target == "host":
        return [sys.executable, "-W", "ignore", "-m", "tests.fuzz.host"]
    clang = find_clang()
    assert clang is not None
    binary = BUILD / target / "target"
    sources = [FUZZ / f"{target}.c", *sources_of(target)]
    argv = [clang, *FLAGS, *SANITIZE, "-I", str(ROOT / PROGRAMS[target].folder), *map(str, sources), "-o", str(binary)]
    subprocess.run(argv, check=True)
    return [str(binary)]


@dataclass(frozen=True, slots=True)
class Stage:
    """Where a target runs: `root` is a folder that was made for it, and all that the agent's can see."""

    target: str
    root: Path
    command: tuple[str, ...]

    @property
    def work(self) -> Path:
        """The inputs."""
        return self.root / "work"

    @property
    def finds(self) -> Path:
        """Where the target tells what it found, as whoever it is by then."""
        return self.root / "finds"

    def inside(self, path: Path) -> str:
        """The path as the target sees it."""
        return f"/{path.relative_to(self.root)}" if self.target == "agent" else str(path)

    def run(self, *arguments: str, log: Path) -> int:
        leaks = f"detect_leaks={int(self.target != 'agent')}"
        environ = {**os.environ, "VMFORK_FUZZ_ROOT": str(self.root), "ASAN_OPTIONS": leaks}
        argv = ["nice", "-n", "19", *self.command, *arguments]
        with log.open("w") as file:
            return subprocess.run(argv, cwd=ROOT, env=environ, stdout=file, stderr=file, check=False).returncode


def fuzz(target: str, seconds: int, *, keep: bool) -> bool:
    """True when nothing was found."""
    folder = BUILD / target
    (folder / "found").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="vmfork-fuzz-") as root:
        stage = Stage(target, Path(root), tuple(command_of(target)))
        for path, mode in ((stage.root, 0o755), (stage.work, 0o700), (stage.finds, 0o777)):
            path.mkdir(exist_ok=True)
            path.chmod(mode)
        for path in [*(FUZZ / "corpus" / target).iterdir(), *(folder / "found").iterdir()]:
            shutil.copy(path, stage.work)
        limits = (
            f"-max_total_time={seconds}",
            f"-max_len={LONGEST}",
            "-timeout=20",
            "-rss_limit_mb=2048",
            "-handle_xfsz=0",
        )
        told = f"-artifact_prefix={stage.inside(stage.finds)}/", "-print_final_stats=1"
        status = stage.run(stage.inside(stage.work), *limits, *told, log=folder / "log")
        found = [shutil.move(path, folder / path.name) for path in stage.finds.iterdir()]
        for path in stage.work.iterdir():
            shutil.copy(path, folder / "found")
        show(target, (folder / "log").read_text(errors="replace"), status, found)
        if keep and not found:
            add_to_corpus(stage)
    return status == 0 and not found


def add_to_corpus(stage: Stage) -> None:
    """Inputs that reach code which the committed ones do not are of them from now on, the shortest ones."""
    corpus = FUZZ / "corpus" / stage.target
    kept = {path.name for path in corpus.iterdir()}
    paths = sorted(stage.work.iterdir(), key=lambda path: (path.name not in kept, path.stat().st_size, path.name))
    for path in list_first(stage, paths):
        shutil.copy(path, corpus)


def list_first(stage: Stage, paths: list[Path]) -> list[Path]:
    """Those that reach code which none before them does.

    It is what a merge of libFuzzer's asks a child of its own for. It cannot start one below another root.
    """
    control = stage.finds / "control"
    control.write_text("\n".join([str(len(paths)), "0", *map(stage.inside, paths)]) + "\n")
    stage.run("-merge_inner=1", f"-merge_control_file={stage.inside(control)}", log=stage.root / "log")
    told = (line.split() for line in control.read_text().splitlines() if line.startswith("COV "))
    return [paths[int(number)] for _, number, *edges in told if edges]


def show(target: str, log: str, status: int, found: list[Path]) -> None:
    last = [line for line in log.splitlines() if re.match(r"#\d+\s", line)][-1:]
    print(f"{target}: exit status {status}; {' '.join(last).strip()}", flush=True)
    for line in re.findall(r"^stat::.*", log, re.MULTILINE):
        print(f"  {line}")
    for path in found:
        print(f"  found {path.relative_to(ROOT)}; the log is {(BUILD / target / 'log').relative_to(ROOT)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("targets", nargs="*", default=[], metavar="TARGET", help=", ".join(TARGETS))
    given = parser.parse_args()
    targets = given.targets or [*TARGETS]
    if unknown := set(targets) - {*TARGETS}:
        parser.error(f"there is no target {', '.join(sorted(unknown))}: {', '.join(TARGETS)}")
    if missing := list_missing(targets):
        print("missing here:", *missing, sep="\n  ", file=sys.stderr)
        return 2
    sound = [fuzz(target, given.seconds, keep=given.keep) for target in targets]
    return 0 if all(sound) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Fuzzes what strangers speak to: the host's client (atheris), the agent and the keeper (libFuzzer, ASan and UBSan).

    python tools/fuzz.py [--seconds N] [--keep] [host|agent|keeper]...

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
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FUZZ = ROOT / "tests" / "fuzz"
BUILD = ROOT / "build" / "fuzz"
FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-g", "-O1", "-fno-omit-frame-pointer"]
SANITIZE = ["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"]
# A larger input reaches nothing that these do not, and is slower.
LONGEST = 4096
# The sources of a program that a target replaces: it includes the last of them itself.
PROGRAMS = {"agent": ("guest", {"main.c", "connection.c"}), "keeper": ("keeper", {"keeper.c", "watch.c"})}
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
    folder, replaced = PROGRAMS[target]
    return [path for path in sorted((ROOT / folder).glob("*.c")) if path.name not in replaced]


def command_of(target: str) -> list[str]:
    """What runs the target; libFuzzer's arguments follow."""
    if target == "host":
        return [sys.executable, "-W", "ignore", "-m", "tests.fuzz.host"]
    clang = find_clang()
    assert clang is not None
    binary = BUILD / target / "target"
    sources = [FUZZ / f"{target}.c", *sources_of(target)]
    argv = [clang, *FLAGS, *SANITIZE, "-I", str(ROOT / PROGRAMS[target][0]), *map(str, sources), "-o", str(binary)]
    subprocess.run(argv, check=True)
    return [str(binary)]


def fuzz(target: str, seconds: int, *, keep: bool) -> bool:
    """True when nothing was found."""
    folder = BUILD / target
    # Below the root that the agent's target takes; it may not enter it while it answers.
    with tempfile.TemporaryDirectory(prefix="vmfork-fuzz-") as root:
        Path(root).chmod(0o755)
        work = Path(root, "work")
        work.mkdir(mode=0o700)
        # Where the target tells what it found, as whoever it is by then.
        finds = Path(root, "finds")
        finds.mkdir()
        finds.chmod(0o777)
        for path in [*(FUZZ / "corpus" / target).glob("*"), *folder.glob("found/*")]:
            shutil.copy(path, work)
        folder.mkdir(parents=True, exist_ok=True)
        command = command_of(target)
        inside = (lambda path: f"/{path.name}") if target == "agent" else str
        environ = {**os.environ, "VMFORK_FUZZ_ROOT": root, "ASAN_OPTIONS": f"detect_leaks={int(target != 'agent')}"}
        argv = ["nice", "-n", "19", *command, inside(work), f"-max_total_time={seconds}", f"-max_len={LONGEST}"]
        argv += [f"-artifact_prefix={inside(finds)}/", "-print_final_stats=1", "-timeout=20", "-rss_limit_mb=2048"]
        log = folder / "log"
        with log.open("w") as file:
            status = subprocess.run(argv, cwd=ROOT, env=environ, stdout=file, stderr=file, check=False).returncode
        found = [*finds.iterdir()]
        for path in found:
            shutil.move(path, folder / path.name)
        for path in work.iterdir():
            (folder / "found").mkdir(exist_ok=True)
            shutil.copy(path, folder / "found")
        show(target, log.read_text(errors="replace"), status, [folder / path.name for path in found])
        if keep and not found:
            merge(target, command, environ, root)
    return status == 0 and not found


def merge(target: str, command: list[str], environ: dict[str, str], root: str) -> None:
    """What reaches something that the committed inputs do not is one of them from now on."""
    kept, more = Path(root, "kept"), Path(root, "work")
    shutil.copytree(FUZZ / "corpus" / target, kept)
    names = [f"/{path.name}" if target == "agent" else str(path) for path in (kept, more)]
    subprocess.run([*command, "-merge=1", *names], cwd=ROOT, env=environ, capture_output=True, check=True)
    shutil.copytree(kept, FUZZ / "corpus" / target, dirs_exist_ok=True)


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

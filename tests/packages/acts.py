"""Popular packages, and the first thing that their users do with each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmfork.aio import Template
from vmfork.config import ImageConfig, VMConfig
from vmfork.image import ImageStore
from vmfork.image.build import build_image
from vmfork.machine.least import ample_memory_mib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmfork.config import Places

# Under emulation a compiler, or a Java machine, takes its time.
ACT_LIMIT_S = 300.0


@dataclass(frozen=True, slots=True)
class Act:
    """A shell script in a fork, by root, and what its output has in it. `packages` are named beside the package."""

    script: str
    want: str
    packages: tuple[str, ...] = ()


_INIT = (
    "git init -q r; cd r; git config user.name n; git config user.email e@x; echo 1 > f; git add f; git commit -qm one"
)
_SSH = (
    "ssh-keygen -A; mkdir -p /run/sshd /root/.ssh; ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519; "
    "cp /root/.ssh/id_ed25519.pub /root/.ssh/authorized_keys; /usr/sbin/sshd; "
    "ssh -o StrictHostKeyChecking=no root@127.0.0.1 'echo in; id sshd'"
)
_C = "printf '#include <stdio.h>\\nint main(void){puts(\"compiled\");}' > a.c; gcc -o a a.c; ./a"
_GO = "printf 'package main\\nfunc main(){println(\"compiled\")}' > a.go; HOME=/root go run a.go 2>&1"
_RUST = "printf 'fn main(){println!(\"compiled\");}' > a.rs; rustc a.rs; ./a"
_POSTGRES = (
    "pg_createcluster 17 main --start; "
    "su postgres -c \"psql -Atc 'create table t as select 6 * 7 as n; select n from t'\""
)
_FFMPEG = (
    "ffmpeg -v error -f lavfi -i testsrc=duration=1:size=64x64:rate=5 a.mp4; "
    "ffprobe -v error -show_entries stream=width a.mp4"
)

ACTS = {
    "git": Act(f"{_INIT}; git log --format=%s", "one"),
    "openssh-server": Act(_SSH, "(sshd)", packages=("openssh-client",)),
    "default-jre-headless": Act("java -version 2>&1; keytool -list -cacerts -storepass changeit | head -4", "contains"),
    "php-cli": Act("php -r 'echo strlen(\"ab\") . json_encode([1]);'", "2[1]"),
    "nodejs": Act("node -e 'console.log([3, 1, 2].sort().join())'", "1,2,3"),
    "gcc": Act(_C, "compiled", packages=("libc6-dev",)),
    "postgresql": Act(_POSTGRES, "42"),
    "nginx": Act("nginx; curl -s http://127.0.0.1/", "Welcome to nginx"),
    "redis": Act("/etc/init.d/redis-server start; redis-cli set k v; redis-cli get k", "v"),
    "sqlite3": Act("sqlite3 a.db 'create table t(n); insert into t values(42); select n from t'", "42"),
    "ffmpeg": Act(_FFMPEG, "width=64"),
    "imagemagick": Act("convert -size 8x4 xc:red a.png; identify -format '%wx%h' a.png", "8x4"),
    "locales": Act(
        "localedef -i de_DE -f UTF-8 de_DE.UTF-8; LC_ALL=de_DE.UTF-8 date -d 2024-03-01 +%B; iconv -l | grep -c BIG5",
        "März",
    ),
    "sudo": Act("sudo -n -u nobody id -un", "nobody"),
    "tmux": Act("tmux new-session -d -s one 'sleep 60'; tmux list-sessions", "one:"),
    "vim": Act("echo old > f; vim -es -c '%s/old/new/' -c 'wq' f; cat f; command -v vi", "new"),
    "perl": Act("perl -MTime::HiRes -MList::Util=sum -e 'print sum(40, 2)'", "42"),
    "ruby": Act("ruby -rjson -e 'puts [1, 2].to_json'", "[1,2]"),
    "golang": Act(_GO, "compiled"),
    "rustc": Act(_RUST, "compiled"),
}


async def open_template(
    name: str, packages: Sequence[str], places: Places, *, warm_up: Sequence[str] = (), ready: str = ""
) -> Template:
    """A template with those packages, and memory enough for its files and as much again."""
    image = await build_image(name, ImageConfig(packages=tuple(packages)), store=ImageStore(places.images))
    config = VMConfig(image=name, memory_mib=ample_memory_mib(image), boot_timeout_s=300.0)
    return await Template.build(name, config, warm_up=warm_up, ready=ready)


async def perform(template: Template, act: Act) -> None:
    """The act succeeds in a fork, or the test says what it said."""
    async with await template.fork() as vm:
        done = await vm.shell(f"set -e; cd /tmp; {act.script}", timeout_s=ACT_LIMIT_S)
    assert done.exit_code == 0, (done.stdout, done.stderr)
    assert act.want in done.stdout

"""What an audit looks at in each fork, and what it must find there: a table to read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from vmfork.config import check_name
from vmfork.errors import ConfigError

Expectation = Literal["differs", "same"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A line of shell whose output in two forks `differs`, or is the `same`. Without output there is no such thing.

    The probe fails when the line does not end with status 0 within the audit's time limit. `hazard` says what can
    happen in forks that do not meet the expectation.
    """

    name: str
    command: str
    expect: Expectation = "differs"
    hazard: str = ""

    def __post_init__(self) -> None:
        check_name(self.name, field="probe.name")
        if not isinstance(self.command, str) or not self.command.strip() or "\0" in self.command:
            raise ConfigError("probe.command", self.command, f"probe {self.name} needs a line of shell")
        if self.expect not in get_args(Expectation):
            raise ConfigError("probe.expect", self.expect, f"{self.expect!r} is not known", hint="use differs or same")
        if not isinstance(self.hazard, str):
            raise ConfigError("probe.hazard", self.hazard, "must be text")


# In the order they run: the first is the first thing that is done in a fork.
PROBES = (
    Probe(
        name="urandom",
        command="od -An -vtx1 -N64 /dev/urandom",
        hazard="keys, tokens and nonces repeat from fork to fork",
    ),
    Probe(
        name="getrandom",
        command="cat /proc/sys/kernel/random/uuid",
        hazard="identifiers repeat from fork to fork",
    ),
    Probe(
        name="address-layout",
        command="[ $(cat /proc/sys/kernel/randomize_va_space) = 0 ] || "
        "while read -r line; do case $line in *'[stack]') echo ${line%% *};; esac; done < /proc/self/maps",
        hazard="a program's addresses can be predicted from another fork",
    ),
    Probe(name="hostname", command="cat /proc/sys/kernel/hostname", hazard="logs and services mistake one for another"),
    Probe(name="machine-id", command="cat /etc/machine-id", hazard="what is derived from it repeats: DHCP, journals"),
    Probe(name="boot-id", command="cat /proc/sys/kernel/random/boot_id", hazard="caches believe nothing was restarted"),
    Probe(name="generation", command="cat /run/vmfork/generation", hazard="programs do not learn of the fork"),
    Probe(name="fork-id", command="cat /run/vmfork/fork-id", hazard="forks cannot be told apart from inside"),
    Probe(
        name="ssh-host-keys",
        command="for f in /etc/ssh/ssh_host_*_key.pub; do [ ! -e $f ] || cat $f; done",
        hazard="whoever has one fork can pose as every other",
    ),
    Probe(
        name="mac-addresses",
        command="for f in /sys/class/net/*; do [ ${f##*/} = lo ] || cat $f/address; done",
        hazard="two forks on one network answer for each other",
    ),
    Probe(
        name="random-seed-files",
        command="for f in /var/lib/*/random-seed; do [ ! -s $f ] || cksum < $f; done",
        hazard="a seed that was saved before the freeze is credited by every fork that boots on",
    ),
    Probe(name="kernel", command="cat /proc/version", expect="same", hazard="the fork is not of this template"),
    Probe(
        name="cpu",
        command="while read -r l; do case $l in model*|flags*) echo ${l#*: };; esac; done < /proc/cpuinfo",
        expect="same",
        hazard="programs that chose their code by the CPU's features crash",
    ),
    Probe(
        name="cpu-count",
        command='n=0; while read -r key _; do [ "$key" != processor ] || n=$((n + 1)); done < /proc/cpuinfo; echo $n',
        expect="same",
        hazard="not the machine asked for",
    ),
    Probe(
        name="memory",
        command='while read -r key rest; do [ "$key" != MemTotal: ] || echo $rest; done < /proc/meminfo',
        expect="same",
        hazard="not the machine asked for",
    ),
    Probe(
        name="disks",
        command="for f in /sys/block/*; do [ ! -e $f ] || echo ${f##*/} $(cat $f/serial $f/size 2>/dev/null); done",
        expect="same",
        hazard="what names disks by serial number does not find them",
    ),
    Probe(
        name="hardware-id",
        command="cat /sys/class/dmi/id/product_name /sys/class/dmi/id/product_uuid 2>/dev/null || true",
        expect="same",
        hazard="licences and inventories see other hardware",
    ),
)

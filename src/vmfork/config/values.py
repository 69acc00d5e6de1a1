"""Frozen configuration. A value that exists is valid: the constructors check and raise `ConfigError`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Literal, get_args

from vmfork.config.endpoint import NO_METRICS, check_socket_path, parse_metrics_address
from vmfork.config.instance import Budget
from vmfork.config.isolation import DEFAULT_USERS, LEVELS, IsolationLevel, IsolationPolicy, parse_users
from vmfork.errors import ConfigError
from vmfork.units import MAX_DURATION_S, Unsaid

Accelerator = Literal["auto", "kvm", "tcg"]
RootChoice = Literal["auto", "memory", "disk"]
MachineKind = Literal["q35", "microvm"]
MachineChoice = Literal["auto", MachineKind]
Reseed = Literal["both", "agent", "vmgenid", "none"]
ASLR = Literal["auto", "on", "off"]
IsolationChoice = Literal["auto", "off"]
BuildPolicy = Literal["now", "background"]
Oversize = Literal["refuse", "allow", "boot"]
Fallback = Literal["auto", "boot", "refuse"]
Missing = Literal["boot", "refuse"]
# What becomes, in a fork of a running machine, of the programs that its parent's clients have running.
LeftPrograms = Literal["keep", "end"]
# What a machine's network card leads to (adopt/card.py).
CardChoice = Literal["none", "restricted", "open", "passt"]

NAME_LIMIT = 64
# The image of this name is built of Debian's packages, and follows this vmfork. Container images take its kernel.
DEFAULT_IMAGE = "default"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_SUITE = re.compile(r"[a-z][a-z0-9-]*")

MAX_CPUS = 255
MIN_MEMORY_MIB = 64
# What 52 address bits reach, the most that an x86 processor has.
_ADDRESSABLE_MIB = 1 << 32
# More machines than this host has ports or process ids for.
_MOST_MACHINES = 65_535
# Half of what the 40 address bits of QEMU's default CPU reach; the other half holds the holes between the dimms.
MAX_MEMORY_MIB = 512 * 1024
# What a file system of 4 KiB blocks takes with 32 bits to count them; one that is too small has no room for itself.
MAX_DISK_MIB = 16 * 1024 * 1024
MIN_DISK_MIB = 8
_MOST_OVERCOMMIT = 1024
# cpu.weight of a control group (cgroup-v2.rst).
MAX_CPU_WEIGHT = 10_000
# Fields of `VMConfig` that say how a machine is made, not what it is.
_LIMITS = ("overcommit", "reserve_mib", "max_pressure", "wait_s")
_TIMES = ("boot_timeout_s", "fork_timeout_s", "hook_timeout_s")
_WAYS = (
    "persist",
    "layers_mib",
    "layers_disk_mib",
    "qemu",
    "isolation",
    "require_isolation",
    "user_ids",
    "control_groups",
    "cpu_weight",
    *_TIMES,
    *_LIMITS,
)
# An x86 kernel takes memory in blocks of this size (Linux 6.12, arch/x86/mm/init_64.c: below 64 GiB).
MEMORY_BLOCK_MIB = 128


def check_name(name: str, *, field: str = "name") -> str:
    """`name` itself. Raises `ConfigError` when it is not safe as a file name.

    1 to 64 characters: letters, digits, `.`, `_`, `-`; the first a letter or digit.
    """
    if not isinstance(name, str):
        raise ConfigError(field, name, f"{name!r} is not a name", hint="give text, such as py-3.13")
    if not name:
        raise ConfigError(field, name, "a name may not be empty", hint="give one, such as py-3.13")
    if len(name) > NAME_LIMIT:
        reason = f"a name has at most {NAME_LIMIT} characters, this one {len(name)}"
        raise ConfigError(field, name, reason, hint="give a shorter one")
    if NAME.fullmatch(name) is None:
        raise ConfigError(
            field,
            name,
            f"{name!r} is not a name",
            hint="use letters, digits, '.', '_' and '-', a letter or digit first",
        )
    return name


def check_import_name(name: str) -> str:
    """`name` itself. Raises `ConfigError` for what no image that was imported can be called."""
    if check_name(name, field="image") == DEFAULT_IMAGE:
        raise ConfigError("image", name, "the image 'default' is built of packages", hint="give another name")
    return name


def check_disk_mib(disk_mib: int, *, field: str) -> int:
    """`disk_mib` itself. Raises `ConfigError`, naming `field`, when it is the size of no disk; 0 is none."""
    _check_whole(field, disk_mib, low=0, high=MAX_DISK_MIB)
    if 0 < disk_mib < MIN_DISK_MIB:
        hint = f"give {MIN_DISK_MIB} or more, or 0 for none"
        raise ConfigError(field, disk_mib, f"{disk_mib} MiB is too little for a disk", hint=hint)
    return disk_mib


def _check_whole(field: str, value: object, *, low: int, high: int | None = None) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(field, value, f"{value!r} is not a whole number")
    if value < low or (high is not None and value > high):
        span = f"{low} or more" if high is None else f"{low} to {high}"
        raise ConfigError(field, value, f"{value} is out of range", hint=f"give {span}")


def _check_seconds(field: str, value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= MAX_DURATION_S:
        raise ConfigError(field, value, f"{value!r} is not a positive number of seconds")


def _check_number(field: str, value: object, *, low: float, high: float) -> None:
    # Not a number compares as false.
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(field, value, f"{value!r} is not a number from {low:g} to {high:g}")


def _either(known: tuple[str, ...]) -> str:
    return " or ".join((", ".join(known[:-1]), known[-1]))


def _text_of(path: object) -> object:
    return os.fspath(path) if isinstance(path, os.PathLike) else path


def _check_line(field: str, value: object) -> None:
    if not isinstance(value, str) or "\0" in value or "\n" in value:
        raise ConfigError(field, value, "must be one line of text")


def _check_list(field: str, value: object) -> tuple[str, ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise ConfigError(field, value, f"{value!r} is not a list", hint="give a list of names")
    return tuple(value)


def check_root(root: RootChoice) -> RootChoice:
    """Where a root lies. Raises `ConfigError` for what is nowhere."""
    if root not in get_args(RootChoice):
        raise ConfigError("image.root", root, f"{root!r} is no root", hint="give auto, memory or disk")
    return root


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """What an image is made of.

    `suite` is a Debian release by name; `packages` are Debian packages by name, added to those of the default image.
    With `bare` they are added to the kernel and the least that a guest needs, which are always there. Its files lie in
    the guest's `memory`, or on a `disk` that all guests read, with memory for what each writes: by size with `auto`.

    With `source` (`from` in a file) it is made of a container image in the place of packages: a name in a registry,
    `oci:PATH[:TAG]`, `docker-archive:FILE[:TAG]` or `dir:FOLDER` (docs/guides/images.md).
    """

    suite: str = "trixie"
    packages: tuple[str, ...] = ()
    bare: bool = False
    root: RootChoice = "auto"
    source: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.source, str) or "\0" in self.source:
            raise ConfigError("image.source", self.source, "must be text that says where a container image is")
        if not isinstance(self.suite, str) or _SUITE.fullmatch(self.suite) is None:
            raise ConfigError("image.suite", self.suite, f"{self.suite!r} is not a Debian release name")
        if not isinstance(self.bare, bool):
            raise ConfigError("image.bare", self.bare, "must be true or false")
        check_root(self.root)
        object.__setattr__(self, "packages", _check_list("image.packages", self.packages))
        for package in self.packages:
            if not isinstance(package, str) or _PACKAGE.fullmatch(package) is None:
                reason = f"{package!r} is not a Debian package name"
                raise ConfigError("image.packages", package, reason, hint="give a name as apt-cache search shows it")
        if self.source:
            self._check_container()

    def _check_container(self) -> None:
        given = next((key for key in ("suite", "packages", "bare") if self._is_given(key)), None)
        if given is not None:
            reason = "is for an image of Debian's packages, and this one is made of a container image"
            raise ConfigError(f"image.{given}", getattr(self, given), reason, hint=f"leave out {given} or from")

    def _is_given(self, key: str) -> bool:
        return bool(getattr(self, key) != type(self).__dataclass_fields__[key].default)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much of the host machines may be given (docs/decisions/0028). The fields are those of `VMConfig`."""

    overcommit: float = 4.0
    reserve_mib: int | None = None
    max_pressure: float = 10.0
    wait_s: float = 0.0


_LIMITS_BY_DEFAULT = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class VMConfig:
    """What a virtual machine is.

    `memory_mib` is guest RAM in MiB: where nobody gives it, 256, or what the image needs if that is more. `cpus` are
    virtual CPUs. A running machine can grow to `max_cpus` and `max_memory_mib`
    (`memory_mib` and a multiple of 128 more); 0 is no growth. `accel` is `auto` (KVM where it is proven to run the
    guest, else TCG), `kvm` or `tcg`. `machine` is QEMU's machine type: `q35`, which `auto` takes, or `microvm`. That
    starts sooner, but takes no memory while it runs and has no vmgenid: the agent alone renews a fork's random numbers.
    `cpu_model` is a QEMU CPU model; empty takes the default of the accelerator, and `portable` one whose templates fit
    every host with the same QEMU. `kernel_args` are added to the kernel's
    command line. `qemu` is the emulator's path; empty finds it on PATH. `boot_timeout_s` bounds a boot to the agent's
    first answer, `fork_timeout_s` a fork to its adoption, and `hook_timeout_s` each before-freeze and after-fork hook.
    `reseed` says who renews a fork's random numbers. Anything but `both` is there to test one defence without the
    other; forks of `none` share their random numbers. `aslr` says whether programs of the guest start at random
    addresses. `auto` is off under TCG, where each start at a new address is translated anew. `isolation` is `auto`, all
    that this host can do to keep an emulator from it, or `off`; a host that can do less than `require_isolation`
    (`none`, `basic`, `namespaces`, `full`) starts no machine. `user_ids` are those that machines become where root
    starts them, as `FIRST-LAST`. `control_groups` is `auto`, which limits an emulator's memory, CPU time and processes
    where this host lets us, or `off`; `cpu_weight` is its share of busy CPUs, 1 to 10000, where 100 is everybody's.
    With `nic` it has a network card, which is down: what that leads to is said for each fork (`card`). With `disk_mib`
    it has a disk of that size beside its root, at `/scratch`, for what does not fit its memory; 0 is none.

    A machine is started where the host has room for it. A fork is counted with the `overcommit`-th part of its RAM, a
    booted machine with all of it; 0 looks at nothing. `reserve_mib` MiB stay the host's (`None`: a twentieth of its
    memory), and nothing is started while its tasks have waited for memory for more than `max_pressure` percent of the
    last 10 s (0: whatever they wait). Where there is no room, it is waited for, `wait_s` seconds at most.
    With `persist` templates that are built or loaded are kept on disk too, and are there after a reboot. What builds
    keep of recipes' steps, their layers, takes `layers_mib` MiB at most (`None`: a tenth of the host's memory), and
    their disks `layers_disk_mib` (`None`: a tenth of what would be free without them where vmfork keeps images).
    """

    image: str = DEFAULT_IMAGE
    cpus: int = 1
    memory_mib: int = Unsaid(256)
    max_cpus: int = 0
    max_memory_mib: int = 0
    accel: Accelerator = "auto"
    machine: MachineChoice = "auto"
    cpu_model: str = ""
    kernel_args: str = ""
    nic: bool = False
    disk_mib: int = 0
    qemu: str = ""
    boot_timeout_s: float = 120.0
    fork_timeout_s: float = 30.0
    hook_timeout_s: float = 30.0
    reseed: Reseed = "both"
    aslr: ASLR = "auto"
    isolation: IsolationChoice = "auto"
    require_isolation: IsolationLevel = "none"
    user_ids: str = DEFAULT_USERS
    control_groups: IsolationChoice = "auto"
    cpu_weight: int = 100
    overcommit: float = _LIMITS_BY_DEFAULT.overcommit
    reserve_mib: int | None = _LIMITS_BY_DEFAULT.reserve_mib
    max_pressure: float = _LIMITS_BY_DEFAULT.max_pressure
    wait_s: float = _LIMITS_BY_DEFAULT.wait_s
    persist: bool = False
    layers_mib: int | None = None
    layers_disk_mib: int | None = None

    def __post_init__(self) -> None:
        check_name(self.image, field="vm.image")
        _check_whole("vm.cpus", self.cpus, low=1, high=MAX_CPUS)
        _check_whole("vm.memory_mib", self.memory_mib, low=MIN_MEMORY_MIB, high=_ADDRESSABLE_MIB)
        self._check_growth()
        if self.accel not in get_args(Accelerator):
            raise ConfigError(
                "vm.accel", self.accel, f"{self.accel!r} is not an accelerator", hint="use auto, kvm or tcg"
            )
        self._check_machine()
        if not isinstance(self.nic, bool):
            raise ConfigError("vm.nic", self.nic, "must be true or false")
        check_disk_mib(self.disk_mib, field="vm.disk_mib")
        object.__setattr__(self, "qemu", _text_of(self.qemu))
        for name in ("cpu_model", "kernel_args", "qemu"):
            _check_line(f"vm.{name}", getattr(self, name))
        _check_seconds("vm.boot_timeout_s", self.boot_timeout_s)
        _check_seconds("vm.fork_timeout_s", self.fork_timeout_s)
        _check_seconds("vm.hook_timeout_s", self.hook_timeout_s)
        self._check_isolation()
        if self.overcommit != 0:
            _check_number("vm.overcommit", self.overcommit, low=1, high=_MOST_OVERCOMMIT)
        if self.reserve_mib is not None:
            _check_whole("vm.reserve_mib", self.reserve_mib, low=0, high=_ADDRESSABLE_MIB)
        _check_number("vm.max_pressure", self.max_pressure, low=0, high=100)
        if not isinstance(self.persist, bool):
            raise ConfigError("vm.persist", self.persist, "must be true or false")
        if self.layers_mib is not None:
            _check_whole("vm.layers_mib", self.layers_mib, low=0, high=_ADDRESSABLE_MIB)
        if self.layers_disk_mib is not None:
            _check_whole("vm.layers_disk_mib", self.layers_disk_mib, low=0, high=_ADDRESSABLE_MIB)
        _check_number("vm.wait_s", self.wait_s, low=0, high=MAX_DURATION_S)
        if self.aslr not in get_args(ASLR):
            raise ConfigError("vm.aslr", self.aslr, f"{self.aslr!r} is not known", hint="use auto, on or off")
        if self.reseed not in get_args(Reseed):
            raise ConfigError(
                "vm.reseed", self.reseed, f"{self.reseed!r} is not known", hint="use both, agent, vmgenid or none"
            )

    @property
    def isolation_policy(self) -> IsolationPolicy:
        """What it asks of a machine's isolation."""
        users = parse_users(self.user_ids, field="vm.user_ids")
        return IsolationPolicy(
            is_off=self.isolation == "off",
            required=self.require_isolation,
            users=users,
            in_groups=self.control_groups != "off",
            cpu_weight=self.cpu_weight,
        )

    @property
    def limits(self) -> Limits:
        """How much of the host its machines may be given."""
        return Limits(**{name: getattr(self, name) for name in _LIMITS})

    @property
    def is_plain(self) -> bool:
        """Whether it asks for nothing in particular. The emulator's path and time limits ask for no machine."""
        return all(getattr(self, each.name) == each.default for each in fields(self) if each.name not in _WAYS)

    def made_as(self, other: VMConfig) -> VMConfig:
        """The same machine, made with the emulator and within the time limits of `other`."""
        return replace(self, **{name: getattr(other, name) for name in _WAYS})

    def _check_isolation(self) -> None:
        choices = get_args(IsolationChoice)
        for name, known in (("isolation", choices), ("require_isolation", LEVELS), ("control_groups", choices)):
            if (value := getattr(self, name)) not in known:
                raise ConfigError(f"vm.{name}", value, f"{value!r} is not known", hint=f"use {_either(known)}")
        parse_users(self.user_ids, field="vm.user_ids")
        _check_whole("vm.cpu_weight", self.cpu_weight, low=1, high=MAX_CPU_WEIGHT)

    def _check_machine(self) -> None:
        if self.machine not in ("auto", *get_args(MachineKind)):
            raise ConfigError(
                "vm.machine", self.machine, f"{self.machine!r} is not a machine", hint="use auto, q35 or microvm"
            )
        if self.machine != "microvm":
            return
        if self.max_memory_mib > self.memory_mib:
            raise ConfigError(
                "vm.max_memory_mib",
                self.max_memory_mib,
                "the machine microvm takes no memory while it runs",
                hint="use machine = q35, or give all of it as memory_mib and no max_memory_mib",
            )
        if self.reseed == "vmgenid":
            raise ConfigError(
                "vm.reseed",
                self.reseed,
                "the machine microvm has no vmgenid",
                hint="use machine = q35, or reseed = agent",
            )

    def _check_growth(self) -> None:
        _check_whole("vm.max_cpus", self.max_cpus, low=0, high=MAX_CPUS)
        if 0 < self.max_cpus < self.cpus:
            reason = f"{self.max_cpus} is less than cpus ({self.cpus})"
            raise ConfigError("vm.max_cpus", self.max_cpus, reason, hint="give as many or more, or 0 for no growth")
        _check_whole("vm.max_memory_mib", self.max_memory_mib, low=0, high=MAX_MEMORY_MIB)
        if self.max_memory_mib == 0:
            return
        growth = self.max_memory_mib - self.memory_mib
        if growth < 0:
            raise ConfigError(
                "vm.max_memory_mib",
                self.max_memory_mib,
                f"{self.max_memory_mib} MiB is less than memory_mib ({self.memory_mib})",
                hint="give as much or more, or 0 for no growth",
            )
        if growth % MEMORY_BLOCK_MIB:
            fitting = self.memory_mib + -(-growth // MEMORY_BLOCK_MIB) * MEMORY_BLOCK_MIB
            raise ConfigError(
                "vm.max_memory_mib",
                self.max_memory_mib,
                f"{self.max_memory_mib} MiB is {growth} MiB above memory_mib ({self.memory_mib}), and a guest takes "
                f"memory in blocks of {MEMORY_BLOCK_MIB} MiB",
                hint=f"give {fitting}",
            )


_POLICIES = {
    "build": get_args(BuildPolicy),
    "oversize": get_args(Oversize),
    "fallback": get_args(Fallback),
    "missing": get_args(Missing),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FactoryConfig:
    """Which factory, and for what machines.

    `template` forks VMs from the template called `template_name`; without it every VM is booted. `recipe` is the path
    of a file that says how that template is made (see `template/recipe_file.py`); one that was made otherwise does not
    fit.
    `templates` are more of them, fetched, for other sizes: the one that fits best is taken. `oversize` says what
    becomes of a request where only larger machines are ready: it is refused (`refuse`), given one of them (`allow`), or
    one of its size is booted (`boot`). A template that is missing, or does not fit, is built: with `build = "now"` by
    opening the factory, with `background` while requests are served without it.
    `fallback` says what becomes of a request that none of these can serve: a machine is booted in its place (`boot`),
    without warm-up and hooks, or it is refused (`refuse`); `auto` refuses where the template was warmed up, waited for
    a ready check, or has hooks. `missing` says what becomes of opening the factory while a template of `templates`, or
    the server, is not there: it is refused, or the factory opens without it and looks again at each request (`boot`).
    `cache` machines of each template are kept ready, each `cache_ttl_s` seconds at most; `vmfork factory init` serves
    them to others. With `cache_min` they are as many as are taken, between `cache_min` and `cache`; a file may say
    `cache = {min = 1, max = 8}`.
    `remote` asks such a server. The templates of this host may hold `budget_mib` MiB of memory together (0: any). Where
    a build of the factory needs more, those that were forked least recently are removed: of those that no machine is a
    fork of, that the configuration does not name, and that can be built again as they were.
    `endpoint` is the server's Unix socket, by default `cache.sock` in the runtime folder; `metrics` is where it serves
    its metrics: `unix:/path`, a loopback `127.0.0.1:9100`, which every user of the host can read, or `none`; by default
    the Unix socket `ENDPOINT.metrics`.
    """

    vm: VMConfig = field(default_factory=VMConfig)
    template: bool = False
    template_name: str = "factory"
    recipe: str = ""
    templates: tuple[str, ...] = ()
    build: BuildPolicy = "now"
    oversize: Oversize = "refuse"
    fallback: Fallback = "auto"
    missing: Missing = "refuse"
    cache: int = 0
    cache_min: int | None = None
    cache_ttl_s: float = 3600.0
    remote: bool = False
    budget_mib: int = 0
    endpoint: str = ""
    metrics: str = ""

    @property
    def budget(self) -> Budget:
        """What templates may hold together when one is built for this factory. Those that it names stay."""
        return Budget(self.budget_mib, (self.template_name, *self.templates))

    def __post_init__(self) -> None:
        if not isinstance(self.vm, VMConfig):
            raise ConfigError("factory.vm", self.vm, f"{self.vm!r} is not a VMConfig", hint="give a VMConfig")
        for name in ("template", "remote"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"factory.{name}", getattr(self, name), "must be true or false")
        check_name(self.template_name, field="factory.template_name")
        object.__setattr__(self, "templates", _check_list("factory.templates", self.templates))
        for name in self.templates:
            check_name(name, field="factory.templates")
        for name, known in _POLICIES.items():
            if (value := getattr(self, name)) not in known:
                raise ConfigError(f"factory.{name}", value, f"{value!r} is not known", hint=f"use {_either(known)}")
        _check_whole("factory.cache", self.cache, low=0, high=_MOST_MACHINES)
        if self.cache_min is not None:
            _check_whole("factory.cache_min", self.cache_min, low=0, high=self.cache)
        _check_seconds("factory.cache_ttl_s", self.cache_ttl_s)
        _check_whole("factory.budget_mib", self.budget_mib, low=0, high=_ADDRESSABLE_MIB)
        for name in ("endpoint", "metrics", "recipe"):
            object.__setattr__(self, name, _text_of(getattr(self, name)))
            _check_line(f"factory.{name}", getattr(self, name))
        if self.recipe and not self.template:
            raise ConfigError(
                "factory.recipe",
                self.recipe,
                "it makes the factory's own template, and there is none",
                hint="set template = true, or leave the recipe away",
            )
        if self.endpoint:
            check_socket_path(self.endpoint, field="factory.endpoint")
        if self.metrics and self.metrics != NO_METRICS:
            parse_metrics_address(self.metrics)

    @property
    def template_names(self) -> tuple[str, ...]:
        """The templates in the order in which they are preferred: its own, then the others."""
        return tuple(dict.fromkeys((*([self.template_name] if self.template else []), *self.templates)))

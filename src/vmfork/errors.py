"""Every error vmfork raises. The branches follow what the caller can do next.

```
VMForkError                 code, hint
├── ConfigError             fix the input
├── HostError               fix the host: QEMU missing, memory short, permission, no space
│   └── NoRoom              one more machine has no room now: close some, wait, or allow more
├── ImageError              an image could not be built or is unknown
│   ├── ImageNotFound
│   ├── ImageCorrupt
│   ├── ImageInUse          templates were made of it: remove them first
│   └── ImageExists         the name leads to another image: pick another, or replace it
├── LaunchError             QEMU did not give a running machine: argv, exit code, log and console tail
├── GuestError              the machine runs, the agent in it does not do as asked
│   ├── ExecError           a program could not be started, or check=True and it failed
│   ├── CodeError           code that was run in the guest failed, and check=True
│   ├── GuestFileError      a file operation failed in the guest
│   ├── PortError           a connection to a port of the guest was refused or lost: wait for the port, or connect again
│   ├── LimitExceeded       more came than the caller takes at once: allow more, or stream it; it has what came
│   ├── MachineEnded        the machine ended while it was in use: exit code, log and console tail; take another
│   ├── RolledBack          what was in use was of before a rollback: use the VM anew
│   ├── ProtocolError       the agent's bytes make no sense, or it speaks another version
│   ├── HookError           a hook failed, or took too long
│   ├── SecretsPresent      what was named a secret is still in the machine to be frozen
│   └── AdoptError          a fork could not be proven unique; it was destroyed
│       └── SetupError      a hook or a file of yours failed in the fork: mend it
├── TemplateError
│   ├── TemplateNotFound    build it
│   ├── TemplateExists      pick another name, or replace
│   ├── TemplateStale       rebuild: field, have, want
│   │   └── TemplateUnfit   one from elsewhere does not fit this host: take a host that it fits, or build it here
│   ├── TemplateCorrupt     rebuild: path, reason
│   └── TemplateElsewhere   it is mounted in another mount namespace: use it there, or build it outside
├── ArtifactError           what a file or a registry gave is damaged, cut off, or no template: get it again
├── FallbackRefused         no machine of the factory is to be had, and none may be booted: mend what `reason` says
├── FitError                a machine could not be given the size asked for: take another; destroy it if not rolled back
├── ClusterError            the cluster's engine, or one of its nodes, did not do as asked
│   ├── NodeLost            a node ended, with the machines named: ask again, another node has them then
│   ├── NodeRefused         a node lets us not in: give the token, or the certificate, that it asks for
│   └── NoNode              no node can have what was asked for: reason, and what would do
├── VMNotFound              no VM of that name or id lives, or waits to be taken over
├── VMExists                a living VM has that name: take another, or end that one
├── NotOwner                only the owner of a VM may do that, and this is one of its clients: attach it
├── StoreBusy               another process works on the same name: wait, or look who
├── DeadlineExceeded        also a TimeoutError
├── WrongContext            used in a forked child, another event loop, or a callback of ours: make it where it is used
├── Closed                  the object was closed
└── InternalError           a bug in vmfork: report it
```

A message is made from fields, and the fields stay readable. Cancellation is never wrapped.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any, ClassVar

from vmfork.hint import Hint, suggest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from vmfork.copied import Copied

# How much of the end of a program's output is shown with an error; `stdout` and `stderr` keep all of it.
_TAIL_SIZE = 8192
# How much of it is shown with a traceback, which has other things to show.
_NOTE_SIZE = 4096


class VMForkError(Exception):
    """Root of all errors raised by vmfork.

    `code` is a stable, machine-readable name (kebab-case). `hint` says what to do, or is empty.
    `details()` gives what a person needs to look deeper (log tails), one block of text, possibly empty. A traceback
    shows both below the message, as notes (PEP 678).
    `mendable`: another try, or another machine, may do without the error; the same input need not meet it again.
    `arrived`, of a copy that broke off, is what it had brought over; the message tells it too.
    `siblings`: what else went wrong where several machines were asked for in one call.
    """

    code: ClassVar[str] = "error"
    mendable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.arrived: Copied | None = None
        self.siblings: tuple[VMForkError, ...] = ()

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # Python's own way calls the class with the message alone, which is not what these take: errors could not be
        # copied, nor come back from another process.
        return _restore, (type(self), self.args), self.__dict__

    def details(self) -> str:
        """Text beyond message and hint: a log tail, a guest's output. Empty where there is none."""
        return ""

    @property
    def __notes__(self) -> list[str]:  # type: ignore[override] # read by traceback and pytest, written by add_note alone
        # Made when they are looked at: a hint, and the end of a console, are often known only after the error is made.
        details = self.details()[-_NOTE_SIZE:].rstrip()
        hint = f"hint: {self.hint}" if self.hint else ""
        return [*filter(None, (details, hint)), *self.__dict__.get("_notes", ())]

    def add_note(self, note: str, /) -> None:
        """A traceback shows the note too."""
        self.__dict__.setdefault("_notes", []).append(note)


class ConfigError(VMForkError):
    """The input is wrong; `field` names it (dotted, as in `vmfork.toml`), `value` is what was given."""

    code = "config"

    def __init__(self, field: str, value: object, reason: str, *, hint: str = "") -> None:
        super().__init__(f"{field}: {reason}", hint=hint)
        self.field = field
        self.value = value
        self.reason = reason


class HostError(VMForkError):
    """The host cannot do it as it is: a program or a device is missing, memory or space is short."""

    code = "host"
    mendable = True

    def __init__(self, message: str, *, hint: str = "", log: str = "") -> None:
        super().__init__(message, hint=hint)
        self.log = log

    def details(self) -> str:
        return self.log


class NoRoom(HostError):
    """The host has no room for what was to be started or added: too little of `resource` is left. Nothing was done.

    `log`, and so `details()`, show the arithmetic. `waited_s` is how long room was waited for, in seconds.
    """

    code = "no-room"
    # Any other machine would meet it too; one that is booted in place of a fork takes more.
    mendable = False

    def __init__(self, resource: str, reason: str, *, log: str = "", waited_s: float = 0.0, hint: str = "") -> None:
        waited = f", after {waited_s:.1f} s" if waited_s else ""
        super().__init__(f"the host has no room: {reason}{waited}", hint=hint, log=log)
        self.resource = resource
        self.reason = reason
        self.waited_s = waited_s


class ImageError(VMForkError):
    """An image could not be built. `log` is the tail of the builder's output. Nothing half-made is left."""

    code = "image"

    def __init__(self, message: str, *, hint: str = "", log: str = "") -> None:
        super().__init__(message, hint=hint)
        self.log = log

    def details(self) -> str:
        return self.log


class ImageNotFound(ImageError):
    """No image of that name was built. The hint has the one of those `known` that may have been meant."""

    code = "image-not-found"

    def __init__(self, name: str, *, known: Iterable[str] = ()) -> None:
        hint = f"{suggest(name, known)}build it: vmfork image build {shlex.quote(name)}"
        super().__init__(f"no image is named {name!r}", hint=hint)
        self.name = name


class ImageCorrupt(ImageError):
    """An image's files are not what its record says."""

    code = "image-corrupt"

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(
            f"image {name!r} is damaged: {reason}",
            hint=f"build it again: vmfork image build {shlex.quote(name)} --rebuild",
        )
        self.name = name
        self.reason = reason


class ImageInUse(ImageError):
    """Templates were made of the image."""

    code = "image-in-use"

    def __init__(self, name: str, templates: Sequence[str]) -> None:
        super().__init__(
            f"templates were made of image {name!r}: {', '.join(templates)}",
            hint="remove them first, or give --force: they fork on, and are no longer compared with their image",
        )
        self.name = name
        self.templates = tuple(templates)


class ImageExists(ImageError):
    """The name leads to another image already; it was not touched."""

    code = "image-exists"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"another image is named {name!r} already",
            hint=Hint("pick another name, or give replace=True", "pick another name, or replace it with --replace"),
        )
        self.name = name


class LaunchError(VMForkError):
    """QEMU ended, or the guest stopped answering, before the machine was ready. Its process is gone."""

    code = "launch"
    mendable = True

    def __init__(
        self,
        reason: str,
        *,
        argv: Sequence[str] = (),
        exit_code: int | None = None,
        log_tail: str = "",
        console_tail: str = "",
        hint: str = "",
    ) -> None:
        ended = "" if exit_code is None else f" (QEMU exit status {exit_code})"
        super().__init__(f"the machine did not start: {reason}{ended}", hint=hint)
        self.reason = reason
        self.argv = tuple(argv)
        self.exit_code = exit_code
        self.log_tail = log_tail
        self.console_tail = console_tail

    def details(self) -> str:
        parts = []
        if self.argv:
            parts.append("command: " + shlex.join(self.argv))
        if self.log_tail:
            parts.append("QEMU log:\n" + self.log_tail.rstrip())
        if self.console_tail:
            parts.append("guest console:\n" + self.console_tail.rstrip())
        return "\n".join(parts)


class GuestError(VMForkError):
    """The guest runs but did not do as asked. `console_tail` is the end of its console, where known."""

    code = "guest"
    mendable = True

    def __init__(self, message: str, *, hint: str = "", console_tail: str = "") -> None:
        super().__init__(message, hint=hint)
        self.console_tail = console_tail

    def details(self) -> str:
        return f"guest console:\n{self.console_tail.rstrip()}" if self.console_tail else ""


class ExecError(GuestError):
    """A program in the guest could not be started, or it failed and `check=True` was asked.

    `exit_code` follows the shell: 127 not found, 126 not executable, 128+n killed by signal n.
    """

    code = "exec"
    mendable = False

    def __init__(
        self,
        argv: Sequence[str],
        exit_code: int,
        reason: str,
        *,
        stdout: bytes = b"",
        stderr: bytes = b"",
        hint: str = "",
    ) -> None:
        super().__init__(f"{shlex.join(argv)}: {reason}", hint=hint)
        self.argv = tuple(argv)
        self.exit_code = exit_code
        self.reason = reason
        self.stdout = stdout
        self.stderr = stderr

    def details(self) -> str:
        return _show_output(self.stdout, self.stderr)


class CodeError(GuestError):
    """Code that was run in the guest failed, and `check=True` was asked.

    `type` is the name of what it raised, `reason` its message, `traceback` as the language prints it.
    """

    code = "code"
    mendable = False

    def __init__(self, type: str, reason: str, traceback: str = "", *, stdout: str = "", stderr: str = "") -> None:  # noqa: A002
        super().__init__(f"the code failed: {type}: {reason}" if reason else f"the code failed: {type}")
        self.type = type
        self.reason = reason
        self.traceback = traceback
        self.stdout = stdout
        self.stderr = stderr

    def details(self) -> str:
        said = _show_output(self.stdout.encode(errors="replace"), self.stderr.encode(errors="replace"))
        return "\n".join(filter(None, (self.traceback.rstrip(), said)))


def _show_output(stdout: bytes, stderr: bytes) -> str:
    parts = (("standard output", stdout), ("standard error", stderr))
    told = ((name, data[-_TAIL_SIZE:].decode(errors="replace").rstrip()) for name, data in parts)
    return "\n".join(f"{name}:\n{text}" for name, text in told if text)


class LimitExceeded(GuestError):
    """`operation` gave more than the `limit_bytes` that its caller takes at once. Nothing more of it comes.

    What came until then: `content` of a file or a list, `stdout` and `stderr` of a program, which was killed. Together
    they have `limit_bytes`.
    """

    code = "limit"
    mendable = False

    def __init__(
        self,
        operation: str,
        limit_bytes: int,
        *,
        content: bytes = b"",
        stdout: bytes = b"",
        stderr: bytes = b"",
        hint: str = "",
    ) -> None:
        super().__init__(f"{operation} gave more than {limit_bytes} bytes", hint=hint)
        self.operation = operation
        self.limit_bytes = limit_bytes
        self.content = content
        self.stdout = stdout
        self.stderr = stderr

    def details(self) -> str:
        return _show_output(self.stdout, self.stderr)


class GuestFileError(GuestError):
    """A file operation failed in the guest. `reason` is the agent's error code, such as `not-found`."""

    code = "guest-file"

    def __init__(self, operation: str, path: str, reason: str, message: str = "", *, hint: str = "") -> None:
        super().__init__(f"{operation} {path}: {message or reason}", hint=hint)
        self.operation = operation
        self.path = path
        self.reason = reason


class PortError(GuestError):
    """A connection to `port` of the guest was refused or lost. `reason` is the agent's error code.

    `refused`: nothing listens there. `reset`: the program ended, or let go of it. `busy`: too many are open.
    """

    code = "port"

    def __init__(self, port: int, reason: str, message: str = "", *, hint: str = "") -> None:
        super().__init__(f"port {port} of the guest: {message or reason}", hint=hint)
        self.port = port
        self.reason = reason


class MachineEnded(GuestError):
    """The machine's process ended while the machine was in use. `exit_code` is negative for a signal, as Python has it.

    0 is a guest that powered off or panicked. `None` is not known: the machine was taken over from another process.
    `panic` is what its kernel said when it panicked, else empty. A guest that `halted`, so that nothing could run in it
    any more, was ended by vmfork. `reason` is why vmfork ended it, as `its time to live is over`, else empty.
    """

    code = "machine-ended"

    def __init__(
        self,
        exit_code: int | None,
        *,
        panic: str = "",
        halted: bool = False,
        reason: str = "",
        log_tail: str = "",
        console_tail: str = "",
        hint: str = "",
    ) -> None:
        how = "" if exit_code is None else f" (QEMU exit status {exit_code})"
        found = f"the guest's kernel panicked: {panic}" if panic else "its guest halted" if halted else reason
        why = f": {found}" if found else how
        super().__init__(f"the machine ended{why}", hint=hint, console_tail=console_tail)
        self.exit_code = exit_code
        self.panic = panic
        self.halted = halted
        self.reason = reason
        self.log_tail = log_tail

    def details(self) -> str:
        log = f"QEMU log:\n{self.log_tail.rstrip()}" if self.log_tail else ""
        return "\n".join(filter(None, (log, super().details())))


class RolledBack(GuestError):
    """The VM went back to a checkpoint while this was in use, which is gone with what the VM was then. The VM runs."""

    code = "rolled-back"

    def __init__(self, vm_id: str) -> None:
        super().__init__(
            f"VM {vm_id} was rolled back to a checkpoint, and what was in use then is gone",
            hint="the VM is there, at its checkpoint: start it anew in it",
        )
        self.vm_id = vm_id


class ProtocolError(GuestError):
    """The agent sent bytes that make no sense, or speaks a protocol this vmfork does not."""

    code = "protocol"


class HookError(GuestError):
    """The hook at `path` in the guest failed. `output` is the end of what it wrote, both streams together."""

    code = "hook"
    mendable = False

    def __init__(self, path: str, reason: str, *, output: bytes = b"", hint: str = "") -> None:
        super().__init__(f"hook {path}: {reason}", hint=hint)
        self.path = path
        self.reason = reason
        self.output = output

    def details(self) -> str:
        text = self.output.decode(errors="replace").rstrip()
        return f"output of the hook:\n{text}" if text else ""


class SecretsPresent(GuestError):
    """`found` lists the secrets that are still in the machine, so it was not frozen."""

    code = "secrets-present"
    mendable = False

    def __init__(self, found: Sequence[str]) -> None:
        super().__init__(
            f"the machine still holds {', '.join(found)}: every fork would have it",
            hint="remove it in a warm-up command or a before-freeze hook and give it to each fork instead "
            "(env, files); or build with --allow-secrets",
        )
        self.found = tuple(found)


class AdoptError(GuestError):
    """The guest did not confirm `item`, so the machine could not be proven unique and was destroyed.

    `output` is what a failed hook wrote, where `item` is one (`SetupError`).
    """

    code = "adopt"

    def __init__(self, item: str, reason: str, *, hint: str = "", console_tail: str = "", output: bytes = b"") -> None:
        super().__init__(f"the fork could not be made unique: {item}: {reason}", hint=hint, console_tail=console_tail)
        self.item = item
        self.reason = reason
        self.output = output

    def details(self) -> str:
        text = self.output.decode(errors="replace").rstrip()
        return "\n".join(filter(None, (f"output of the hook:\n{text}" if text else "", super().details())))


class SetupError(AdoptError):
    """A hook of the template, or a file that was given for this fork, failed: `item` names it. The fork was destroyed.

    Every other fork would fail in the same way. Its `code` is that of `AdoptError`.
    """

    mendable = False


class TemplateError(VMForkError):
    """Something is wrong with the template called `name`."""

    code = "template"
    mendable = True

    def __init__(self, name: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.name = name


class TemplateNotFound(TemplateError):
    """No template of that name exists here."""

    code = "template-not-found"

    def __init__(self, name: str) -> None:
        quoted = shlex.quote(name)
        super().__init__(
            name,
            f"no template is named {name!r}",
            hint=Hint(
                f"build it: Template.build({name!r}), or Template.ensure", f"build it: vmfork template build {quoted}"
            ),
        )


class TemplateExists(TemplateError):
    """A template of that name exists already; it was not touched."""

    code = "template-exists"

    def __init__(self, name: str) -> None:
        super().__init__(
            name,
            f"a template named {name!r} exists already",
            hint=Hint(
                "pick another name, or build it with replace=True", "pick another name, or replace it with --replace"
            ),
        )


def _build_again(name: str) -> Hint:
    return Hint(
        f"build it again: Template.build({name!r}, ..., replace=True)",
        f"build it again: vmfork template build {shlex.quote(name)} --replace",
    )


class TemplateStale(TemplateError):
    """The template was frozen under other conditions: `field` was `have` then and is `want` now."""

    code = "template-stale"

    def __init__(self, name: str, field: str, have: object, want: object) -> None:
        super().__init__(
            name,
            f"template {name!r} does not fit: {field} is {have!r} in the template and {want!r} here",
            hint=_build_again(name),
        )
        self.field = field
        self.have = have
        self.want = want


_FITTING = {
    "qemu.version": "it fits hosts with that QEMU: install it here, or build the template here",
    "machine": "it fits hosts with the QEMU that it was frozen by: install it here, or build the template here",
    "accel": "it fits hosts where KVM runs guests (vmfork doctor): build it under TCG for others",
    "host_cpu": "it fits hosts with that very CPU; built with cpu_model = portable (--portable) it fits others too",
    "tsc_khz": "it fits hosts whose TSC counts at that rate; built with machine = q35 it fits others too",
    "agent.protocol": "it fits a vmfork that speaks this protocol: use the one that made it, or build it here",
}


class TemplateUnfit(TemplateStale):
    """A template from elsewhere, `source`, was frozen on a host that this one is too different from.

    `field` was `have` there and is `want` here. Nothing of its RAM was read.
    """

    code = "template-unfit"

    def __init__(self, name: str, field: str, have: object, want: object, *, source: str) -> None:
        super().__init__(name, field, have, want)
        self.message = f"{source}: {self.message}"
        self.args = (self.message,)
        self.hint = _FITTING.get(field, "take a host that is like the one it was frozen on, or build it here")
        self.source = source


class ArtifactError(VMForkError):
    """What a file or a registry gave is damaged, cut off, or not what it should be. Nothing was made of it.

    `source` names it, with the part that is wrong.
    """

    code = "artifact"

    def __init__(self, source: str, reason: str, *, hint: str = "") -> None:
        super().__init__(f"{source}: {reason}", hint=hint or "get it again, or have it saved or pushed again")
        self.source = source
        self.reason = reason


class TemplateCorrupt(TemplateError):
    """A file of the template is not what was written."""

    code = "template-corrupt"

    def __init__(self, name: str, path: str, reason: str) -> None:
        super().__init__(
            name,
            f"template {name!r} is damaged: {path}: {reason}",
            hint=_build_again(name),
        )
        self.path = path
        self.reason = reason


class TemplateElsewhere(TemplateError):
    """The template is whole, in a mount namespace that `holder` keeps alive; from here its files are not seen."""

    code = "template-elsewhere"

    def __init__(self, name: str, holder: str) -> None:
        super().__init__(
            name,
            f"template {name!r} is mounted in another mount namespace, that of {holder}, and cannot be used from here",
            hint=Hint(
                "use it there, or take it away from there and build it here: Template.build(..., replace=True)",
                "use it there (nsenter --mount --target PID), or take it away from there and build it here: "
                f"vmfork template build {shlex.quote(name)} --replace",
            ),
        )
        self.holder = holder


class FitError(VMForkError):
    """A running machine could not be given the size `wanted`.

    Where `rolled_back`, it has the size it had before and runs on. Else `left` says what could not be taken back: its
    size is not what it says, and it must be closed.
    """

    code = "fit"
    mendable = True

    def __init__(self, wanted: str, reason: str, *, left: str = "", log: str = "") -> None:
        stuck = f"; what was done could not be taken back: {left}" if left else ""
        super().__init__(
            f"the machine could not be given {wanted}: {reason}{stuck}",
            hint="close it and take another"
            if left
            else "it has the size it had before; ask for another, or boot one of that size",
        )
        self.wanted = wanted
        self.reason = reason
        self.left = left
        self.log = log

    @property
    def rolled_back(self) -> bool:
        """Whether the machine is as it was before."""
        return not self.left

    def details(self) -> str:
        return self.log


_LISTED = Hint(
    "VM.list() gives those that live",
    command="vmfork ps -a lists those that live, and those started on their own that ended not long ago",
)
_ATTACHED_ONCE = "a VM can be attached once after each detach, and only while it lives"


class VMNotFound(VMForkError):
    """There is no VM `vm_id` to be had: it never was, has ended, or its time to live is over."""

    code = "vm-not-found"
    mendable = True

    def __init__(self, vm_id: str, reason: str = "", *, hint: str = "") -> None:
        said = f"there is no VM {vm_id!r}: {reason}" if reason else f"no VM {vm_id!r} waits for a new owner"
        super().__init__(said, hint=hint or (_LISTED if reason else _ATTACHED_ONCE))
        self.vm_id = vm_id
        self.reason = reason


class VMExists(VMForkError):
    """A VM that lives has the name; it is `vm_id`."""

    code = "vm-exists"

    def __init__(self, name: str, vm_id: str) -> None:
        super().__init__(
            f"VM {vm_id} is named {name!r}", hint=f"take another name, or end that one: vmfork stop {name}"
        )
        self.name = name
        self.vm_id = vm_id


class ClusterError(VMForkError):
    """The cluster's engine, or one of its nodes, did not do as asked."""

    code = "cluster"
    mendable = True


class NodeLost(ClusterError):
    """`node` ended, or can be reached no more, and `machines` (ids) with it. What was under way there is not known.

    One that `is_cut` off gives no sign of life, and may run on with all that it has.
    """

    code = "node-lost"

    def __init__(self, node: str, machines: Sequence[str] = (), reason: str = "", *, is_cut: bool = False) -> None:
        named = f", and with it {', '.join(machines)}" if machines else ""
        super().__init__(
            f"node {node} was lost{named}" + (f": {reason}" if reason else ""),
            hint="ask again: a machine that was asked for by the same key is never made twice",
        )
        self.node = node
        self.machines = tuple(machines)
        self.reason = reason
        self.is_cut = is_cut


class NodeRefused(ClusterError):
    """`node` lets us not in, or shows itself by no certificate that we believe. Nothing was done."""

    code = "node-refused"
    mendable = False

    def __init__(self, node: str, reason: str, *, hint: str = "") -> None:
        super().__init__(f"node {node} cannot be used: {reason}", hint=hint)
        self.node = node
        self.reason = reason


class NoNode(ClusterError):
    """No node can have what was asked for, as things stand. `reasons`: how many nodes it is that each keeps from it."""

    code = "no-node"
    mendable = False

    def __init__(self, reason: str, *, reasons: Mapping[str, int] | None = None, hint: str = "") -> None:
        super().__init__(f"no node can have it: {reason}", hint=hint)
        self.reason = reason
        self.reasons = dict(reasons or {})


class NotOwner(VMForkError):
    """Only the owner of a VM may do `what`, and this is one of its clients. Nothing was done."""

    code = "not-owner"

    def __init__(self, what: str, vm_id: str) -> None:
        super().__init__(
            f"only the owner of VM {vm_id} may {what}, and this is one of its clients",
            hint="take it over, when no other client uses it: VM.attach(id)",
        )
        self.what = what
        self.vm_id = vm_id


class FallbackRefused(VMForkError):
    """The factory has no machine to give, and none is booted in its place: that would lack warm-up and hooks.

    `reason` is what `Factory.stats()` counts, such as `template-not-found`; `detail` says it in words.
    """

    code = "fallback-refused"
    mendable = True

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(
            f"the factory has no machine to give, and none is booted in its place: {detail or reason}",
            hint='see what is wrong with vmfork factory status; to boot one instead: fallback = "boot" in [factory]',
        )
        self.reason = reason
        self.detail = detail


class StoreBusy(VMForkError):
    """Another process holds `what`; `holder` says who, where known."""

    code = "busy"
    mendable = True

    def __init__(self, what: str, holder: str = "", *, hint: str = "wait for it to finish, then try again") -> None:
        by = f" by {holder}" if holder else ""
        super().__init__(f"{what} is in use{by}", hint=hint)
        self.what = what
        self.holder = holder


class DeadlineExceeded(VMForkError, TimeoutError):
    """`operation` was not done within `limit_s` seconds. `stdout` and `stderr` hold what a command wrote so far."""

    code = "deadline"
    mendable = True

    def __init__(
        self,
        operation: str,
        limit_s: float,
        *,
        hint: str = "",
        stdout: bytes = b"",
        stderr: bytes = b"",
        detail: str = "",
    ) -> None:
        super().__init__(f"{operation} took longer than {limit_s:g} s", hint=hint)
        self.operation = operation
        self.limit_s = limit_s
        self.stdout = stdout
        self.stderr = stderr
        self.detail = detail

    def details(self) -> str:
        return self.detail


class WrongContext(VMForkError):
    """`what` was used where it cannot be: in a forked child, in another event loop, or from inside a callback."""

    code = "wrong-context"

    def __init__(self, what: str, reason: str, *, hint: str = "") -> None:
        super().__init__(f"{what} {reason}", hint=hint)
        self.what = what
        self.reason = reason


class Closed(VMForkError):
    """`what` was closed, or given up (`how`), and can do nothing more."""

    code = "closed"
    mendable = True

    def __init__(self, what: str, reason: str = "", *, how: str = "is closed", hint: str = "") -> None:
        super().__init__(f"{what} {how}" + (f": {reason}" if reason else ""), hint=hint)
        self.what = what
        self.how = how


def _restore(kind: type[VMForkError], args: tuple[object, ...]) -> VMForkError:
    error = kind.__new__(kind)
    error.args = args
    return error


class InternalError(VMForkError):
    """Something in vmfork failed that should not have: a bug. The error it failed with is the `__cause__`."""

    code = "bug"

    def __init__(self, message: str) -> None:
        super().__init__(
            message,
            hint=Hint(
                "this is a bug in vmfork: please report it with the traceback",
                "this is a bug in vmfork: please report it with the command you gave",
            ),
        )

"""One QEMU process: started with descriptors we opened, watched through its pidfd, told what to do over QMP."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Self

from vmfork.errors import Closed, HostError, VMForkError
from vmfork.host.folders import tail_of
from vmfork.host.keeper import Beside, KeptProcess, Parked
from vmfork.host.sockets import connect_unix, listen_unix
from vmfork.hypervisor.base import HALTED, MemoryPiece
from vmfork.hypervisor.qemu import hotplug, scratch, surroundings
from vmfork.hypervisor.qemu.command import Descriptors, build_command
from vmfork.hypervisor.qemu.console import ConsoleTail
from vmfork.hypervisor.qemu.outlet import WatchedOutlet, start_outlet
from vmfork.units import MIB

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from pathlib import Path

    from vmfork.host.passt import StartedPasst
    from vmfork.host.process import ProcessIdentity
    from vmfork.hypervisor.base import Launch
    from vmfork.hypervisor.qemu.binary import QemuBinary
    from vmfork.hypervisor.qemu.monitor import Monitor

AGENT_SOCKET = "agent.sock"
QMP_SOCKET = "qmp.sock"
KEEPER_SOCKET = "keeper.sock"
LOG = "qemu.log"
CONSOLE = "console.log"


class QemuMachine:
    """Owner of a QEMU process and of what it uses in its folder.

    ```
    FOLDER/agent.sock   the guest's agent; one client at a time
           qmp.sock     QEMU's monitor, opened when it is first needed
           keeper.sock  its keeper, asked by whoever takes the machine over
           qemu.log     what QEMU printed
           console.log  the end of what the guest printed on its serial console
           passt.log    what passt printed, where its card leads out by that
    ```
    """

    def __init__(
        self,
        process: KeptProcess,
        console: ConsoleTail,
        *,
        name: str,
        folder: Path,
        agent: socket.socket | None,
        outlet: WatchedOutlet | None = None,
    ) -> None:
        self._process = process
        self._outlet = outlet
        self._agent = agent
        self._console = console
        self._name = name
        self._folder = folder
        self._detached = False
        self._monitor: Monitor | None = None
        self._opening = asyncio.Lock()
        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()

    @classmethod
    def start(cls, binary: QemuBinary, launch: Launch) -> Self:
        """QEMU was started. Both sockets take connections already: they were opened before it and passed to it.

        Whether it comes up shows when the agent answers or the process ends. Raises `HostError` when it cannot be run.
        """
        with ExitStack() as always, ExitStack() as on_failure:
            qmp = always.enter_context(listen_unix(launch.folder / QMP_SOCKET))
            agent = always.enter_context(listen_unix(launch.folder / AGENT_SOCKET))
            ours, theirs = socket.socketpair()
            always.enter_context(theirs)
            on_failure.enter_context(ours)
            log_fd = os.open(launch.folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            always.callback(os.close, log_fd)
            kernel, initramfs = surroundings.open_image(launch, opened=always)
            passt = start_outlet(launch, opened=always)
            fds = Descriptors(
                qmp=qmp.fileno(),
                agent=agent.fileno(),
                console=theirs.fileno(),
                kernel=kernel,
                initramfs=initramfs,
                line=-1 if passt is None else passt.line.fileno(),
            )
            kvm_fd = surroundings.open_kvm(launch, opened=always)
            of_keeper, of_qemu = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            always.enter_context(of_keeper)
            always.enter_context(of_qemu)
            passed = (
                of_qemu.fileno(),
                fds.qmp,
                fds.agent,
                fds.console,
                kernel,
                initramfs,
                fds.line,
                kvm_fd,
                *surroundings.list_inherited(launch),
            )
            process = KeptProcess.start(
                build_command(binary, launch, fds),
                log_fd=log_fd,
                listen_at=launch.folder / KEEPER_SOCKET,
                lock_fd=launch.lock_fd,
                pass_fds=[fd for fd in passed if fd is not None and fd >= 0],
                env=surroundings.make_environment(launch, kvm_fd=kvm_fd, keeper_fd=of_qemu.fileno()),
                confined=launch.containment.has("filter") or not binary.has_sandbox,
                jail=surroundings.make_jail(
                    launch.containment,
                    folder=launch.folder,
                    groups=launch.groups,
                    scratch_mib=launch.hardware.scratch_mib,
                    opened=always,
                ),
                memory_fd=of_keeper.fileno(),
                held_fds=surroundings.list_layers(launch),
                beside=_beside(passt, launch.folder),
            )
            on_failure.callback(process.end)
            outlet = None
            if passt is not None:
                outlet = WatchedOutlet(passt.hand_over(), folder=launch.folder, ready=passt.take_ready())
                on_failure.callback(outlet.close)
            # Now, while we still listen ourselves: a QEMU that ended at once leaves a closed connection then. Later
            # nobody would listen, and connecting would fail without a reason.
            client = on_failure.enter_context(connect_unix(launch.folder / AGENT_SOCKET))
            console = ConsoleTail(ours, launch.folder / CONSOLE)
            on_failure.pop_all()
        return cls(process, console, name=launch.name, folder=launch.folder, agent=client, outlet=outlet)

    @classmethod
    async def attach(
        cls,
        folder: Path,
        identity: ProcessIdentity,
        *,
        name: str,
        token: bytes,
        outlet: ProcessIdentity | None = None,
    ) -> tuple[Self, socket.socket, int | None]:
        """The machine that waits in `folder`, once `confirm` is called; the line to its agent; its lock, if it has one.

        `outlet` is the process that its card leads out by. Raises `VMNotFound` and `StoreBusy`. The machine ends when
        it is closed, or our process ends, before `confirm`.
        """
        process, passed = await KeptProcess.take(folder / KEEPER_SOCKET, token=token, identity=identity, vm_id=name)
        fds = [*passed]
        async with AsyncExitStack() as on_failure:
            on_failure.push_async_callback(process.aclose)
            on_failure.callback(_close_all, fds)
            line, console = _take_socket(fds, on_failure), _take_socket(fds, on_failure)
            log = folder / CONSOLE
            tail = ConsoleTail(console, log, before=log.read_bytes() if log.exists() else b"")
            watched = WatchedOutlet.find(outlet, folder=folder)
            on_failure.pop_all()
        machine = cls(process, tail, name=name, folder=folder, agent=None, outlet=watched)
        return machine, line, fds[0] if fds else None

    def confirm(self) -> None:
        """The machine is ours, and lives as long as we do. Raises `HostError` when its keeper has ended it."""
        self._process.confirm()

    async def detach(self, line: socket.socket, *, token: bytes, ttl_s: float) -> None:
        """Nobody owns the machine. For `ttl_s` seconds (0: for ever) its keeper holds it for whoever knows `token`.

        `line` is the connection to its agent. After an error, or on cancel, it must be closed, which ends it.
        """
        monitor, self._monitor = self._monitor, None
        if monitor is not None:
            await monitor.aclose()
        with ExitStack() as always:
            console = always.enter_context(self._console.release())
            log_fd = os.open(self._folder / CONSOLE, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            always.callback(os.close, log_fd)
            await self._process.park(Parked(line.fileno(), console.fileno(), log_fd), token=token, ttl_s=ttl_s)
        self._process.release()
        self._release_outlet()
        self._detached = True

    @property
    def identity(self) -> ProcessIdentity:
        return self._process.identity

    @property
    def argv(self) -> tuple[str, ...]:
        return self._process.argv

    @property
    def has_ended(self) -> bool:
        return self._process.has_ended

    @property
    def exit_code(self) -> int | None:
        return self._process.exit_code

    def connect_agent(self) -> socket.socket:
        """A connection to the guest's agent. What is sent waits until the guest reads it.

        The first connection can always be had; the other side has closed it where QEMU has ended. A later one raises
        `HostError` then.
        """
        client, self._agent = self._agent, None
        return client or connect_unix(self._folder / AGENT_SOCKET)

    def on_exit(self, callback: Callable[[int | None], None], /) -> None:
        self._process.on_exit(callback)

    def on_halt(self, callback: Callable[[], None], /) -> None:
        """QEMU tells nothing of a CPU that halts for good. All there is to go by is what its kernel prints before."""
        self._console.on_text(HALTED.encode(), callback)

    def kill(self) -> None:
        """The process was sent SIGKILL; `on_exit` tells its end."""
        self._process.kill()

    def log_tail(self) -> str:
        return tail_of(self._folder / LOG)

    def console_tail(self) -> str:
        """The last lines the guest wrote to its console, 4 KiB at most."""
        return self._console.text()[-4096:]

    @property
    def console_bytes(self) -> int:
        return self._console.total

    async def pause(self) -> None:
        """The virtual CPUs stand still."""
        async with self._asking() as monitor:
            await monitor.execute("stop")

    async def resume(self) -> None:
        """The virtual CPUs run."""
        async with self._asking() as monitor:
            await monitor.execute("cont")

    async def is_running(self) -> bool:
        """The virtual CPUs are not stopped."""
        async with self._asking() as monitor:
            return bool((await monitor.execute("query-status"))["running"])

    async def check(self) -> None:
        """QEMU answered, so its main loop runs; the guest may stand still."""
        await self.is_running()

    async def wait_stopped(self) -> str:
        """The virtual CPUs stand still; gives QEMU's run state, such as `internal-error` (QMP reference, RunState)."""
        async with AsyncExitStack() as always:
            monitor = await always.enter_async_context(self._asking())
            events = always.enter_context(monitor.listen("STOP"))
            while (state := str((await monitor.execute("query-status"))["status"])) in ("running", "inmigrate"):
                await anext(events)
        return state

    async def save_state(self, path: Path, /) -> None:
        """Device state without RAM is in `path` (60 to 80 KB, about 1 ms). The machine was paused, and stays so.

        `xen-save-devices-state` needs no Xen: it is the one command of a stock QEMU that saves devices and leaves RAM
        out whatever backs it (QEMU 7.2, migration/savevm.c).
        """
        async with AsyncExitStack() as always:
            monitor = await always.enter_async_context(self._asking())
            fd = _create(path)
            always.callback(os.close, fd)
            # QEMU is passed the file: it need not be able to reach the folder, nor to open anything for writing.
            async with monitor.lend(fd) as name:
                await monitor.execute("xen-save-devices-state", filename=name, live=False)

    @asynccontextmanager
    async def copying_scratch(self, fd: int, /) -> AsyncIterator[str]:
        """What is on the disk that the guest writes to is in the file `fd`, an empty qcow2 open for both, behind it.

        It is as it was when what the block is given was said to the monitor, by whoever has lent that and stopped the
        machine. Raises `HostError` when it could not be copied; nothing is left of it then, nor on cancel.
        """
        async with self._asking() as monitor:
            await scratch.open_target(monitor, fd)
        try:
            yield scratch.BEGIN
            async with self._asking() as monitor:
                await scratch.finish(monitor)
        except BaseException:
            with suppress(VMForkError, OSError):  # what went wrong first is what is told
                async with self._asking() as monitor:
                    await scratch.drop(monitor)
            raise

    async def copy_scratch(self, fd: int, /) -> None:
        """As `copying_scratch`, of a machine that stands still."""
        async with self.copying_scratch(fd), self._asking() as monitor:
            await scratch.begin(monitor)

    async def locate_memory(self, address: int, /) -> int:
        """Where QEMU has what its guest has at `address`. Raises `HostError` when that is no memory."""
        async with self._asking() as monitor:
            said = str(await monitor.execute("human-monitor-command", **{"command-line": f"gpa2hva {address:#x}"}))
        place = said.rpartition(" is 0x")[2].strip()
        if not place or " " in place:
            raise HostError(f"QEMU does not tell where its guest's memory is: {said.strip()[:80]}")
        return int(place, 16)

    async def list_memory(self) -> list[MemoryPiece]:
        """The pieces that are plugged in, in the order in which they came: each is put behind the one before it."""
        async with self._asking() as monitor:
            found = [device["data"] for device in await monitor.execute("query-memory-devices")]
        return [
            MemoryPiece(each["id"], each["size"] // MIB, each["addr"], not each["hotplugged"])
            for each in sorted(found, key=lambda each: each["addr"])
        ]

    async def add_memory(self, name: str, size_mib: int, /) -> None:
        """The guest has taken `size_mib` MiB of new memory and said so (ACPI _OST); it knows it as `name`.

        There is no limit to the wait. Raises `HostError` when QEMU has no room for it, or the guest reports a failure.
        After any failure `remove_memory` cleans up.
        """
        async with AsyncExitStack() as always:
            monitor = await always.enter_async_context(self._asking())
            events = always.enter_context(monitor.listen(hotplug.GUEST_REPORT))
            size = size_mib * MIB
            await monitor.execute("object-add", **{"qom-type": "memory-backend-ram", "id": f"{name}-ram", "size": size})
            await monitor.execute("device_add", driver="pc-dimm", id=name, memdev=f"{name}-ram")
            await hotplug.wait_taken(events, name)

    async def remove_memory(self, name: str, /) -> None:
        """The guest has given the memory back, if it was plugged at all, and QEMU has freed it.

        There is no limit to the wait. Raises `HostError` when the guest uses it and so keeps it.
        """
        async with self._asking() as monitor:
            plugged = {device["data"]["id"] for device in await monitor.execute("query-memory-devices")}
            if name in plugged:
                with monitor.listen(hotplug.GUEST_REPORT, hotplug.DELETED) as events:
                    await monitor.execute("device_del", id=name)
                    await hotplug.wait_given_back(events, name)
            if f"{name}-ram" in {backend["id"] for backend in await monitor.execute("query-memdev")}:
                await monitor.execute("object-del", id=f"{name}-ram")

    @property
    def outlet(self) -> ProcessIdentity | None:
        return None if self._outlet is None else self._outlet.identity

    async def wait_outlet(self, *, timeout_s: float) -> None:
        """The passt of its card has come up. Raises `HostError` when it has ended, and `DeadlineExceeded`."""
        if self._outlet is not None:
            await self._outlet.wait_up(timeout_s=timeout_s)

    def on_outlet_lost(self, callback: Callable[[], None], /) -> None:
        """`callback` is called once the passt of its card has ended, while we own the machine."""
        if self._outlet is not None:
            self._outlet.on_lost(callback)

    async def set_carrier(self, *, up: bool) -> None:
        """The guest sees its card with a carrier, or without. The device's state keeps it, in copies of the machine."""
        async with self._asking() as monitor:
            await monitor.execute("set_link", name="card", up=up)

    def _release_outlet(self) -> None:
        outlet, self._outlet = self._outlet, None
        if outlet is not None:
            outlet.close()

    async def wait(self) -> int | None:
        return await self._process.wait()

    async def aclose(self) -> None:
        """QEMU is gone and reaped; sockets are closed.

        QEMU ends by SIGKILL: nothing in these machines outlives them, so there is nothing for it to finish. Its end is
        waited for, because an ending QEMU unlinks the socket paths it listened on: a path that was used again before
        would disappear under its new owner. A machine that was detached is somebody else's, and stays.
        """
        if self._detached:
            return
        self._release_outlet()
        self._process.kill()
        try:
            monitor, self._monitor = self._monitor, None
            if monitor is not None:
                await monitor.aclose()
            await self._process.aclose()
        except BaseException:
            self._process.end()
            raise
        finally:
            self._console.close()
            self._remove_sockets()

    def end(self) -> None:
        """As `aclose`, at once and without an event loop: for when the loop it belongs to is gone."""
        if self._detached:
            return
        monitor, self._monitor = self._monitor, None
        if monitor is not None:
            monitor.drop()
        self._release_outlet()
        self._process.end()
        self._console.drop()
        self._remove_sockets()

    def _remove_sockets(self) -> None:
        if self._agent is not None:
            self._agent.close()
        for name in (AGENT_SOCKET, QMP_SOCKET, KEEPER_SOCKET):
            with suppress(FileNotFoundError):
                (self._folder / name).unlink()

    @asynccontextmanager
    async def lend_monitor(self) -> AsyncIterator[socket.socket]:
        """A connection to QEMU's monitor, to be greeted, for somebody else. Whoever asks QEMU something waits."""
        async with self._opening:
            self._check_here()
            await self._unused.wait()
            monitor, self._monitor = self._monitor, None
            if monitor is not None:
                await monitor.aclose()
            with connect_unix(self._folder / QMP_SOCKET) as connected:
                yield connected

    @property
    def keeper(self) -> Path:
        """Where its keeper listens."""
        return self._folder / KEEPER_SOCKET

    @asynccontextmanager
    async def _asking(self) -> AsyncIterator[Monitor]:
        """QEMU may be asked in the block. The connection is kept."""
        monitor = await self._get_monitor()
        self._users += 1
        self._unused.clear()
        try:
            yield monitor
        finally:
            self._users -= 1
            if not self._users:
                self._unused.set()

    def _check_here(self) -> None:
        if self._detached:
            raise Closed(f"machine {self._name}", how="was detached")
        if self._process.has_ended:
            raise Closed(f"machine {self._name}", describe_end(self._process.exit_code))

    async def _get_monitor(self) -> Monitor:
        self._check_here()
        # QEMU greets one client at a time: of two that open it together, the second would wait for ever.
        async with self._opening:
            if self._monitor is None:
                self._monitor = await open_monitor(self._folder)
            return self._monitor


async def open_monitor(folder: Path) -> Monitor:
    """The monitor of the machine in `folder`, which the caller closes. QEMU greets one client at a time."""
    # Most forks live and die without a word to their monitor. A call that needs it pays for the import and the greeting
    # (docs/decisions/0001).
    from vmfork.hypervisor.qemu.monitor import Monitor  # noqa: PLC0415

    return await Monitor.open(lambda: connect_unix(folder / QMP_SOCKET))


def _beside(passt: StartedPasst | None, folder: Path) -> Beside | None:
    if passt is None:
        return None
    lease = None if passt.lease is None else passt.lease.fileno()
    return Beside(passt.pid, passt.process, lease, folder / QMP_SOCKET)


def _take_socket(fds: list[int], on_failure: AsyncExitStack) -> socket.socket:
    """The socket that the first of `fds` is; it owns the descriptor then."""
    taken = on_failure.enter_context(socket.socket(fileno=fds[0]))
    del fds[0]
    return taken


def _create(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError(f"cannot write device state to {path}: {error.strerror}") from error


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def describe_end(exit_code: int | None) -> str:
    """How QEMU ended, in words. `None`: it was no child of ours, and nobody tells."""
    return "QEMU ended" if exit_code is None else f"QEMU ended with exit status {exit_code}"

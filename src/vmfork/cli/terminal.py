"""Our own terminal, lent to a program in a guest.

```
ours --lend--> raw --the program's end, an error, a signal that ends us--> as it was
                |  ^
        SIGTSTP |  | SIGCONT, in the foreground again
                v  |
             as it was, stopped
```

While it is raw, keys are bytes: Ctrl-C, Ctrl-Z and Ctrl-D go to the guest's terminal, which makes of them what it does
there. A signal from elsewhere, `kill -TSTP`, stops us as it does any program. SIGKILL leaves a raw terminal behind, as
with any program: `reset`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import termios
import tty
from contextlib import AsyncExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from vmfork.cli.streams import beside, feed
from vmfork.errors import ConfigError, VMForkError
from vmfork.host.wait import write_all
from vmfork.wire.command import Window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmfork.agent.process import GuestProcess
    from vmfork.wire.message import ExecStatus

_INPUT = 0
# Of a terminal that does not know its own, such as that of `script` in a pipeline.
_PLAIN = Window(24, 80)


def check_terminal() -> None:
    """Raises `ConfigError` when our standard input is no terminal that could be lent."""
    if not os.isatty(_INPUT):
        hint = "leave out --tty (-it): input and output are passed through without it"
        raise ConfigError("tty", None, "standard input is not a terminal", hint=hint)


def read_window() -> Window:
    """The size of our terminal."""
    try:
        columns, rows = os.get_terminal_size(_INPUT)
    except OSError:  # it has gone
        return _PLAIN
    return Window(rows or _PLAIN.rows, columns or _PLAIN.columns)


def terminal_env() -> dict[str, str]:
    """What a program must know of our terminal, and of our language."""
    names = [name for name in os.environ if name in ("TERM", "LANG") or name.startswith("LC_")]
    return {name: os.environ[name] for name in names if os.environ[name]}


async def lend_terminal(process: GuestProcess) -> ExecStatus:
    """The program has ended; until then our terminal was its own, and is now as it was before."""
    async with AsyncExitStack() as stack:
        resized = asyncio.Event()
        stack.enter_context(_raw(resized))
        await stack.enter_async_context(beside(feed(process)))
        await stack.enter_async_context(beside(_follow_size(process, resized)))
        async for _, data in process.output():
            await write_all(1, data)
        return await process.wait()


async def _follow_size(process: GuestProcess, resized: asyncio.Event) -> None:
    """The guest's terminal has the size of ours, whenever that changes."""
    while True:
        await resized.wait()
        resized.clear()
        with suppress(VMForkError):  # what ends the machine is told by its output
            await process.resize(*read_window())


@contextmanager
def _raw(resized: asyncio.Event) -> Iterator[None]:
    """Our terminal is raw in the block, and as it was behind it. `resized` is set when it may have another size."""
    before = termios.tcgetattr(_INPUT)
    loop = asyncio.get_running_loop()
    handled = {number: signal.getsignal(number) for number in (signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT)}

    def take() -> None:
        # In the background this stops us (SIGTTOU) until we are in the foreground again, as it should.
        with suppress(termios.error):
            tty.setraw(_INPUT, termios.TCSANOW)

    def give_back() -> None:
        with suppress(termios.error):
            termios.tcsetattr(_INPUT, termios.TCSANOW, before)

    def stop() -> None:
        give_back()
        loop.remove_signal_handler(signal.SIGTSTP)
        # Here we stand still, until SIGCONT; or not at all, where no shell could ever continue us.
        os.kill(os.getpid(), signal.SIGTSTP)
        go_on()

    def go_on() -> None:
        listen_for_stop()
        take()
        resized.set()

    def listen_for_stop() -> None:
        if handled[signal.SIGTSTP] is not signal.SIG_IGN:
            loop.add_signal_handler(signal.SIGTSTP, stop)

    loop.add_signal_handler(signal.SIGWINCH, resized.set)
    loop.add_signal_handler(signal.SIGCONT, go_on)
    try:
        listen_for_stop()
        take()
        yield
    finally:
        give_back()
        for number, handler in handled.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)

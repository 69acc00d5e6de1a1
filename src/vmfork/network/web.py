"""The proxy for HTTP: CONNECT, and requests in absolute form, each judged for itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import h11

from vmfork.network.dialing import Unreachable
from vmfork.network.errand import run_errand
from vmfork.network.gate import Denied
from vmfork.network.relay import relay
from vmfork.network.side import Side
from vmfork.network.target import parse_absolute, parse_authority

if TYPE_CHECKING:
    from vmfork.network.caller import Caller
    from vmfork.network.gate import Gate

_LENGTHS = {b"content-length", b"transfer-encoding"}


class _Refusal(Exception):
    """The request is one that nobody answers: `str()` says why."""


class WebProxy:
    """One connection of a guest that speaks HTTP. A request's head is to be there within `head_s` seconds."""

    def __init__(self, caller: Caller, gate: Gate, *, head_s: float) -> None:
        self._caller = caller
        self._gate = gate
        self._head_s = head_s
        self._guest = Side(h11.SERVER, read=caller.read, write=caller.write)

    async def serve(self) -> None:
        """The guest's requests were answered, until it or an answer ended the connection."""
        try:
            await self._serve_all()
        except Denied as denied:
            await self._answer(403, str(denied))
        except Unreachable as error:
            await self._answer(502, str(error))
        except h11.RemoteProtocolError as error:
            await self._answer(error.error_status_hint, str(error))
        except (h11.LocalProtocolError, _Refusal) as error:
            await self._answer(400, str(error))
        except TimeoutError:
            await self._answer(408, f"no request came within {self._head_s:g} s")

    async def _serve_all(self) -> None:
        line = self._guest.line
        while (request := await self._next_request()) is not None:
            if request.method == b"CONNECT":
                await self._tunnel(request)
                return
            await self._pass_on(request)
            if line.our_state is not h11.DONE or line.their_state is not h11.DONE:
                break
            line.start_next_cycle()
        await self._caller.end()

    async def _next_request(self) -> h11.Request | None:
        """The head of the next request; `None` where the guest ended instead."""
        async with asyncio.timeout(self._head_s):
            event = await self._guest.next_event()
        if isinstance(event, h11.ConnectionClosed):
            return None
        assert isinstance(event, h11.Request)
        lengths = _LENGTHS & {name for name, _ in event.headers}
        if len(lengths) == 2 or (lengths and event.method == b"CONNECT"):
            raise _Refusal("a request has one length, content-length or transfer-encoding, and CONNECT has none")
        return event

    async def _tunnel(self, request: h11.Request) -> None:
        target = request.target.decode("ascii", "replace")
        if (found := parse_authority(target)) is None:
            raise _Refusal(f"CONNECT is to HOST:PORT, and not to {target!r}")
        async with self._gate.passage(*found) as service:
            await self._guest.send(h11.Response(status_code=200, headers=[], reason=b"Connected"))
            self._caller.give_back(self._guest.line.trailing_data[0])
            await relay(self._caller, service, self._gate, *found)

    async def _pass_on(self, request: h11.Request) -> None:
        target = request.target.decode("ascii", "replace")
        if (found := parse_absolute(target)) is None:
            raise _Refusal(f"this is a proxy, and {target!r} is no http://HOST/: for https, ask by CONNECT")
        host, port, path = found
        async with self._gate.passage(host, port) as service:
            await run_errand(self._guest, request, path, service, self._gate, host=host, port=port)

    async def _answer(self, status: int, why: str) -> None:
        """The guest was told, and nothing more is served. Behind the head of another answer its connection is reset."""
        if self._guest.line.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        said = f"vmfork: {why}".encode("ascii", "backslashreplace")
        headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(said) + 1)), ("Connection", "close")]
        head = h11.Response(status_code=status, headers=headers, reason=said)
        for event in (head, h11.Data(data=said + b"\n"), h11.EndOfMessage()):
            await self._guest.send(event)
        await self._caller.end()

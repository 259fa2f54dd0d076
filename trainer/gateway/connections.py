"""One client's connection: uvicorn's HTTP/1.1 protocol, and limits on how long its client may keep it waiting.

uvicorn itself ends connections that are idle between requests, but waits for ever for the end of a head that has begun,
or that never begins, and for a client that does not read its answer; a few hundred such connections would be all that a
server can hold.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from trainer.gateway.errors import GatewayError

HEAD_SECONDS = 10.0
READ_SECONDS = 60.0


class Connection(H11Protocol):
    """Closes itself when no whole head has come for `head_seconds`, however much of one trickles in, and when its
    client has read next to nothing of an answer for `read_seconds`."""

    head_seconds = HEAD_SECONDS
    read_seconds = READ_SECONDS
    _timer: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        self._is_read()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """More is waiting to be read than the transport likes to hold."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self.read_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read on."""
        self._is_read()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, in the gateway's words; where an answer has gone out already, by closing alone."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            refusal = GatewayError("INVALID_ARGUMENT", msg.rstrip("."), reason="NOT_HTTP", close=True)
            content = json.dumps(refusal.body()).encode()
            headers = [("content-type", "application/json"), ("content-length", str(len(content)))]
            head = h11.Response(status_code=400, headers=[*headers, *refusal.headers().items()], reason=b"Bad Request")
            for event in (head, h11.Data(data=content), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _watch(self) -> None:
        """Time runs while no request is being answered; it is not begun again by a few more bytes."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(self.head_seconds, self._end)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _is_read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _end(self) -> None:
        self._timer = None
        if (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing():
            self.transport.close()

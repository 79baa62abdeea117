"""How the gateway listens: HTTP/1.1 with a time limit for a request's headers, which uvicorn has none for."""

from __future__ import annotations

import asyncio
import math

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADERS_TIMEOUT_S = 10.0
IDLE_CONNECTION_S = 30


class Connection(H11Protocol):
    """A connection that is closed if a request's headers are not there in time, from the connection or the last answer
    on.
    """

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._waiting = self.loop.call_later(HEADERS_TIMEOUT_S, transport.close)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        busy = self.cycle is not None and not self.cycle.response_complete
        if busy:
            self._stop_waiting()
        elif self._waiting is None:
            self._waiting = self.loop.call_later(HEADERS_TIMEOUT_S, self.transport.close)

    def on_response_complete(self) -> None:
        self._stop_waiting()  # uvicorn's own limit of an idle connection begins
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


def configuration(app: ASGIApp, host: str, port: int, longest_answer_s: float) -> uvicorn.Config:
    """A gateway that is told to end closes idle connections, and waits `longest_answer_s` for what is in flight."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=Connection,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=IDLE_CONNECTION_S,
        timeout_graceful_shutdown=math.ceil(longest_answer_s),
    )

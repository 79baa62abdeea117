"""Limits of uploads, kept while they stream: their size, their time, and what all of them hold together."""

from __future__ import annotations

import asyncio
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.web.errors import TOO_LARGE, ApiError
from serving.web.settings import MAX_PICTURE_BYTES, SMALL_BODY_BYTES, Settings

FORM_BYTES = 64 * 1024  # of multipart boundaries and headers around a picture
LINGER_S = (
    2.0  # for what is still on its way when the answer is known; a connection closed at once would lose the answer
)


class Uploads:
    """ASGI middleware whose `receive` raises ApiError for a body that is too large, too slow, or too much at the
    moment.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        length = headers.get("content-length", "0")
        if length == "0" and "transfer-encoding" not in headers:
            await self._app(scope, receive, send)
            return
        upload = _Upload(self, receive, send, waits="100-continue" in headers.get("expect", "").lower())
        try:
            if int(length) > MAX_PICTURE_BYTES + FORM_BYTES:
                await ApiError("image_too_large", TOO_LARGE).response()(scope, upload.receive, upload.send)
            else:
                await self._app(scope, upload.receive, upload.send)
        finally:
            self._held -= upload.held

    def hold(self, count: int) -> None:
        """Count bytes of a large body. Raises ApiError."""
        self._held += count
        if self._held > self._settings.max_held_bytes:
            raise ApiError("overloaded", "too many large pictures are arriving at the moment; send it again later")

    @property
    def body_timeout_s(self) -> float:
        return self._settings.body_timeout_s


class _Upload:
    def __init__(self, uploads: Uploads, receive: Receive, send: Send, *, waits: bool) -> None:
        self._uploads = uploads
        self._receive = receive
        self._send = send
        self._waits = waits  # for a 100 Continue, so that nothing is on its way
        self._deadline = time.monotonic() + uploads.body_timeout_s
        self._received = 0
        self._complete = False
        self.held = 0

    async def receive(self) -> Message:
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout(self._deadline - time.monotonic()):
                message = await self._receive()
        except TimeoutError as error:
            raise ApiError("deadline", "the upload did not arrive within its time limit", 408) from error
        self._note(message)
        if self._received > MAX_PICTURE_BYTES + FORM_BYTES:
            raise ApiError("image_too_large", TOO_LARGE)
        above = max(0, self._received - SMALL_BODY_BYTES) - self.held
        if above > 0:
            self.held += above
            self._uploads.hold(above)
        return message

    def _note(self, message: Message) -> None:
        self._complete = message["type"] == "http.disconnect" or not message.get("more_body", False)
        self._received += len(message.get("body", b""))

    async def send(self, message: Message) -> None:
        if self._complete:
            await self._send(message)
        elif message["type"] == "http.response.start":
            MutableHeaders(scope=message)["Connection"] = "close"
            await self._send(message)
        elif message.get("more_body", False):
            await self._send(message)
        else:
            await self._send({**message, "more_body": True})
            if not self._waits:
                await self._linger()
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _linger(self) -> None:
        try:
            async with asyncio.timeout(LINGER_S):
                while not self._complete:
                    self._note(await self._receive())
        except TimeoutError:
            return

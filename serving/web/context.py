"""The outermost layer: the request's names, the security headers, the access log, and an answer when all else
failed.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.web.errors import ApiError

access = logging.getLogger("serving.web.access")
log = logging.getLogger(__name__)

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# https://www.w3.org/TR/trace-context/#traceparent-header; version 00, no all-zero identifiers
TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
TRACESTATE = re.compile(r"[\x20-\x7e]{1,512}")
CLIENT_CLOSED = 499  # as nginx logs it: nobody was there to be answered
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Context:
    """ASGI middleware. `scope["state"]` holds `upstream_headers`: what names the request to the model service."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        names, trace_id = named(Headers(scope=scope))
        scope.setdefault("state", {})["upstream_headers"] = names
        seen: dict[str, int] = {"status": 0, "bytes": 0}

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen["status"] = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = names["X-Request-Id"]
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            else:
                seen["bytes"] += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except ClientDisconnect:
            seen["status"] = seen["status"] or CLIENT_CLOSED
        except Exception:  # a fault of ours gets the form of every other error, and the log its traceback
            log.exception("request %s failed", names["X-Request-Id"])
            if seen["status"]:
                raise  # half an answer is out; only a broken connection can say so
            error = ApiError("internal_error", "the gateway could not handle this request; its log says why", 500)
            await error.response()(scope, receive, send_named)
        finally:
            milliseconds = round(1000 * (time.perf_counter() - started), 1)
            fields: dict[str, Any] = {"method": scope["method"], "path": scope["path"], "ms": milliseconds, **seen}
            fields |= {
                "request_id": names["X-Request-Id"],
                "trace_id": trace_id,
                "client": (scope.get("client") or ("",))[0],
            }
            access.info("request", extra={"fields": fields})


def named(headers: Headers) -> tuple[dict[str, str], str]:
    """The headers that go on to the model service, and the trace's identifier or ""."""
    given = headers.get("x-request-id", "")
    names = {"X-Request-Id": given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex}
    trace = TRACEPARENT.fullmatch(headers.get("traceparent", ""))
    if trace:
        names["traceparent"] = trace[0]
        if TRACESTATE.fullmatch(headers.get("tracestate", "")):
            names["tracestate"] = headers["tracestate"]
    return names, trace[1] if trace else ""

"""The model service as the gateway calls it: HAProxy, on a Unix socket, with its queue and its deadlines."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import httpx

from serving.web import oip
from serving.web.errors import ApiError

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 2.0
ANSWER_TIMEOUT_S = 600.0  # a last resort: HAProxy's own limits are far below
KEPT_FOR_S = 30.0  # below the 60 s for which HAProxy keeps a connection
PIECE_BYTES = 64 * 1024
NAMES = ("X-Request-Id", "traceparent", "tracestate")  # of a request; HAProxy has seen that they are well-formed


class Upstream:
    """Asks for answers of `model` on the socket `edge`. `transport` replaces it."""

    def __init__(self, model: str, edge: Path, transport: httpx.AsyncBaseTransport | None = None) -> None:
        limits = httpx.Limits(max_connections=None, keepalive_expiry=KEPT_FOR_S)  # HAProxy limits requests
        self._infer = f"http://edge/v2/models/{model}/infer"
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            transport=transport or httpx.AsyncHTTPTransport(uds=str(edge), limits=limits),
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def read(
        self, content: bytes | list[int], alphabet: str, top_k: int, headers: Mapping[str, str]
    ) -> tuple[oip.Reading, float]:
        """What the service reads in a picture, or in 784 pixels, and how many milliseconds it took. Raises ApiError.

        The request keeps the names that it has in `headers`.
        """
        body = oip.encode(content, alphabet, top_k, headers.get("X-Request-Id", ""))
        sent = {name: headers[name] for name in NAMES if name in headers}
        sent |= {"Content-Length": str(sum(map(len, body))), oip.JSON_LENGTH: str(len(body[0]))}
        started = time.perf_counter()
        try:
            response = await self._client.post(self._infer, content=pieces(body), headers=sent)
        except httpx.HTTPError as error:
            log.warning("HAProxy cannot be asked: %r", error)
            raise ApiError(502, "internal_error", "the service broke off; send the request again") from error
        milliseconds = 1000 * (time.perf_counter() - started)
        if response.status_code != 200:
            raise refusal(response)
        try:
            return oip.decode(response.content), milliseconds
        except ValueError as error:
            log.error("the model service answered what is not understood: %s", error)
            raise ApiError(502, "internal_error", "the service gave an answer that is not understood") from error


async def pieces(parts: Sequence[bytes]) -> AsyncIterator[bytes]:
    """The parts one after the other, of which the network never holds another copy."""
    for part in parts:
        for start in range(0, len(part), PIECE_BYTES):
            yield part[start : start + PIECE_BYTES]


def refusal(response: httpx.Response) -> ApiError:
    """The error of an answer, {"error": "<code>: <message>"}, as one of ours."""
    try:
        code, message = response.json()["error"].split(": ", 1)
    except (ValueError, LookupError, TypeError, AttributeError):
        log.error("the model service answered %d: %.200s", response.status_code, response.text)
        return ApiError(502, "internal_error", f"the model service answered {response.status_code}")
    message = message.removeprefix("picture 0: ")  # there is no other one
    return ApiError(response.status_code, code, message, response.headers.get("Retry-After"))

"""The model service as the gateway calls it: kept connections, a deadline for everything, its errors in our form."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping

import httpx

from serving.web import oip
from serving.web.errors import STATUS, TOO_LARGE, ApiError
from serving.web.settings import MAX_PICTURE_BYTES, Settings

log = logging.getLogger(__name__)

KEPT_FOR_S = 30.0  # below the 60 s for which the service keeps a connection
CODE_OF_STATUS = {413: "image_too_large", 503: "overloaded", 504: "deadline"}  # where no code is told
UNREACHABLE = "the model service cannot be reached; try again in a moment"
TOO_SLOW = "the model service did not answer within its time limit"


class Upstream:
    """Asks one model service. `transport` replaces the network."""

    def __init__(self, settings: Settings, transport: httpx.AsyncBaseTransport | None = None) -> None:
        base = settings.upstream.rstrip("/")
        self._infer = f"{base}/v2/models/{settings.model_name}/infer"
        self._ready = f"{base}/ready"
        self._settings = settings
        self._in_flight = 0
        limits = httpx.Limits(
            max_connections=settings.max_in_flight + 8, max_keepalive_connections=32, keepalive_expiry=KEPT_FOR_S
        )
        timeout = httpx.Timeout(
            settings.answer_timeout_s, connect=settings.connect_timeout_s, pool=settings.connect_timeout_s
        )
        headers = {"X-API-Key": settings.upstream_api_key} if settings.upstream_api_key else {}
        # Proxies of the environment are for the internet, and the service is not there.
        self._client = httpx.AsyncClient(
            limits=limits, timeout=timeout, headers=headers, transport=transport, trust_env=False
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def ready(self) -> bool:
        try:
            return (await self._client.get(self._ready, timeout=self._settings.ready_timeout_s)).status_code == 200
        except httpx.HTTPError:
            return False

    async def read(
        self, content: bytes | list[int], alphabet: str, top_k: int, headers: Mapping[str, str]
    ) -> tuple[oip.Reading, float]:
        """What the service reads in a picture, or in 784 pixels, and how many milliseconds it took. Raises ApiError."""
        if self._in_flight >= self._settings.max_in_flight:
            raise ApiError("overloaded", "too many pictures are being read at the moment; send it again later")
        self._in_flight += 1
        try:
            body, json_length = oip.encode(content, alphabet, top_k, headers.get("X-Request-Id", ""))
            if len(body) > MAX_PICTURE_BYTES:  # the service would break off while it is being sent
                raise ApiError("image_too_large", TOO_LARGE)
            sent = {**headers, "Content-Type": "application/octet-stream", oip.JSON_LENGTH: str(json_length)}
            started = time.perf_counter()
            async with asyncio.timeout(self._settings.answer_timeout_s):
                response = await self._post(body, sent)
            milliseconds = 1000 * (time.perf_counter() - started)
        except (TimeoutError, httpx.TimeoutException) as error:
            raise ApiError("deadline", TOO_SLOW) from error
        except httpx.HTTPError as error:
            log.warning("the model service cannot be reached: %r", error)
            raise ApiError("upstream_unreachable", UNREACHABLE) from error
        finally:
            self._in_flight -= 1
        return self._reading(response), milliseconds

    async def _post(self, body: bytes, headers: Mapping[str, str]) -> httpx.Response:
        """Send it, and once more where the connection broke: a kept one may just have been closed, and asking twice
        changes nothing.
        """
        try:
            return await self._client.post(self._infer, content=body, headers=headers)
        except (httpx.NetworkError, httpx.RemoteProtocolError):
            return await self._client.post(self._infer, content=body, headers=headers)

    @staticmethod
    def _reading(response: httpx.Response) -> oip.Reading:
        if response.status_code != 200:
            raise refusal(response)
        try:
            reading = oip.decode(response.content)
        except ValueError as error:
            log.error("the model service answered what is not understood: %s", error)
            raise ApiError("internal_error", "the model service gave an answer that is not understood") from error
        if reading.error:
            code, message = reading.error
            raise ApiError(code if code in STATUS else "internal_error", message)
        return reading


def refusal(response: httpx.Response) -> ApiError:
    """The whole request refused: {"error": "<code>: <message>"}, or the REST contract's form."""
    try:
        said = response.json()["error"]
        code, message = (said["code"], said["message"]) if isinstance(said, dict) else said.split(": ", 1)
    except (ValueError, LookupError, TypeError, AttributeError):
        code, message = "", ""
    if code not in STATUS or code == "unauthorized":  # the gateway's key, not the client's
        log.error("the model service answered %d: %.200s", response.status_code, response.text)
        code, message = (
            CODE_OF_STATUS.get(response.status_code, "internal_error"),
            f"the model service answered {response.status_code}",
        )
    return ApiError(code, message, retry_after=response.headers.get("Retry-After"))

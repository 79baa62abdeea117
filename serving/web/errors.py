"""Errors in one form: {"error": {"code", "message"}}."""

from __future__ import annotations

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

RETRY_AFTER_S = 1
TOO_LARGE = "a picture may have at most 16 MiB, less a kilobyte for what is sent with it"
STATUS = {
    "bad_request": 400,
    "unknown_alphabet": 400,
    "invalid_image": 400,
    "unauthorized": 401,
    "image_too_large": 413,
    "unsupported_format": 415,
    "blank_image": 422,
    "internal_error": 502,
    "upstream_unreachable": 502,
    "overloaded": 503,
    "not_ready": 503,
    "deadline": 504,
}
HTTP_MESSAGES = {
    404: "there is no such path; the page is at /, the API at POST /api/predict, its description at /docs",
    405: "this path does not take that method",
}


class ApiError(Exception):
    """What a request gets instead of an answer; `status` is the code's own unless another is given."""

    def __init__(self, code: str, message: str, status: int | None = None, retry_after: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status or STATUS[code]
        self.retry_after = retry_after or (str(RETRY_AFTER_S) if self.status == 503 else None)

    def response(self) -> JSONResponse:
        headers = {"Cache-Control": "no-store"}
        if self.retry_after:
            headers["Retry-After"] = self.retry_after
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse({"error": {"code": self.code, "message": self.message}}, self.status, headers)


async def on_api_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return error.response()


async def on_http_error(_request: Request, error: Exception) -> JSONResponse:
    """What the framework says by itself: no such path, not that method."""
    assert isinstance(error, HTTPException)
    response = ApiError("bad_request", HTTP_MESSAGES.get(error.status_code, error.detail), error.status_code).response()
    response.headers.update(error.headers or {})
    return response


async def on_invalid_parameter(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"] if part != "query") or "the query"
    code = "unknown_alphabet" if first["loc"] == ("query", "alphabet") else "bad_request"
    message = "there is no such parameter" if first["type"] == "extra_forbidden" else first["msg"]
    return ApiError(code, f"{name}: {message[:1].lower()}{message[1:]}").response()

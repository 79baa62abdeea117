"""Errors in one form: {"error": {"code", "message"}}."""

from __future__ import annotations

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

HTTP_MESSAGES = {
    404: "there is no such path; the page is at /, the API at POST /api/predict, its description at /docs",
    405: "this path does not take that method",
}


class ApiError(Exception):
    """What a request gets instead of an answer."""

    def __init__(self, status: int, code: str, message: str, retry_after: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after = retry_after

    def response(self) -> JSONResponse:
        headers = {"Retry-After": self.retry_after} if self.retry_after else {}
        return JSONResponse({"error": {"code": self.code, "message": self.message}}, self.status, headers)


async def on_api_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return error.response()


async def on_fault(_request: Request, _error: Exception) -> JSONResponse:
    """A fault of ours; uvicorn writes its traceback into the log."""
    message = "the gateway could not handle this request; its log says why"
    return ApiError(500, "internal_error", message).response()


async def on_http_error(_request: Request, error: Exception) -> JSONResponse:
    """What the framework says by itself: no such path, not that method."""
    assert isinstance(error, HTTPException)
    response = ApiError(error.status_code, "bad_request", HTTP_MESSAGES.get(error.status_code, error.detail)).response()
    response.headers.update(error.headers or {})
    return response


async def on_invalid_parameter(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"] if part != "query") or "the query"
    code = "unknown_alphabet" if first["loc"] == ("query", "alphabet") else "bad_request"
    message = "there is no such parameter" if first["type"] == "extra_forbidden" else first["msg"]
    return ApiError(400, code, f"{name}: {message[:1].lower()}{message[1:]}").response()

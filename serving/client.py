"""A client of the service: one picture in, one answer out."""

from __future__ import annotations

from typing import Any

import requests

DEFAULT_URL = "http://127.0.0.1:8080"
REQUEST_TIMEOUT_S = 30


class ServiceError(Exception):
    """The service refused a picture or cannot be reached. `code` is the REST contract's; `status` is None without an answer."""

    def __init__(self, code: str, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


class Client:
    """Sends pictures to one service over a kept connection. Use it in one thread, and as a context manager."""

    def __init__(self, url: str = DEFAULT_URL, model: str = "emnist", timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        self._endpoint = f"{url.rstrip('/')}/predictions/{model}"
        self._timeout_s = timeout_s
        self._session = requests.Session()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def predict(self, picture: bytes, alphabet: str | None = None, top_k: int | None = None) -> dict[str, Any]:
        """The service's answer for an encoded picture: character, ascii, confidence, alphabet, alternatives. Raises ServiceError."""
        given = {"alphabet": alphabet, "top_k": top_k}
        parameters = {name: str(value) for name, value in given.items() if value is not None}
        headers = {"Content-Type": "application/octet-stream"}
        try:
            response = self._session.post(self._endpoint, params=parameters, data=picture, headers=headers, timeout=self._timeout_s)
        except requests.RequestException as error:
            raise ServiceError("unreachable", f"{self._endpoint} cannot be reached: {error}") from error
        try:
            body: dict[str, Any] = response.json()
        except ValueError:
            body = {}
        if response.ok and "character" in body:
            return body
        error_body = body.get("error") or {}
        raise ServiceError(error_body.get("code", "unexpected"), error_body.get("message", response.text[:200]), response.status_code)

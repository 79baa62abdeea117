"""A client of the service: pictures in, answers out, one at a time or many at once.

    with Client("http://127.0.0.1:8080") as client:
        print(client.predict(picture).character)
        for result in client.predict_many(Path("pictures").glob("*.png"), alphabet="vin"):
            print(result.picture, result.answer or result.error)

`python -m serving.client PICTURE...` does it from the command line, see `serving/client/__main__.py`.

What is sent again: a picture that was answered 503, which is the service's word for "later", and nothing else with a
status. Not what timed out, for it may be what made the service slow. Not a connection that was refused or broke, with
one exception: one that was kept from an earlier picture, for a server may close that at the very moment that it is
used, and then the picture is sent once more over a new one. A prediction changes nothing, so it may be asked for twice.
"""

from __future__ import annotations

import random
import stat
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import requests

from serving.client.answers import Answer, Result, ServiceError, read_answer
from serving.keys import usable

DEFAULT_URL = "http://127.0.0.1:8080"
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 35.0  # longer than the edge's own limit, whose 504 says more
CONCURRENCY = 8
MAX_DOUBLINGS = 30
AHEAD = 2  # pictures read for each that is in flight, so that a slow one does not hold up those behind it
MAX_PICTURE_BYTES = 16 * 1024 * 1024  # the edge lets no larger body in
API_KEY = "X-API-Key"
BROKEN = (ConnectionResetError, BrokenPipeError)


@dataclass(frozen=True)
class Retries:
    """How often, and after what pause, a picture that was answered 503 is sent again."""

    times: int = 8
    base_s: float = 0.25  # the longest first pause, then doubled
    cap_s: float = 8.0  # of the longest pause
    deadline_s: float = 60.0  # from the call on; no pause ends after it, while the last try has its own timeout

    def pause_s(self, tried: int, retry_after: str | None) -> float:
        """At least what the service asks for, in seconds, and a random part (full jitter), so that clients do not come
        back together.
        """
        asked = float(retry_after) if retry_after and retry_after.isdecimal() else 0.0
        return asked + random.uniform(0, min(self.cap_s, self.base_s * 2 ** min(tried, MAX_DOUBLINGS)))


class Client:
    """Sends pictures to one service. Threads may share it; each keeps a connection of its own. Use it as a context
    manager.

    `concurrency` is how many pictures of `predict_many` are in flight, `timeout_s` the seconds to connect and to wait
    for an answer, `api_key` goes along as X-API-Key. Redirects are not followed: they would carry it elsewhere. `sleep`
    and `clock` are there for tests. Raises ValueError for a URL that is none, or a key that no header can hold.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        model: str = "emnist",
        timeout_s: tuple[float, float] = (CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
        api_key: str | None = None,
        retries: Retries = Retries(),
        concurrency: int = CONCURRENCY,
        sleep: Callable[[float], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        parts = urlsplit(url)
        if (
            parts.scheme not in {"http", "https"}
            or not parts.hostname
            or parts.port == 0
            or parts.query
            or parts.fragment
        ):
            raise ValueError(f"{url!r} is no URL such as {DEFAULT_URL}")
        if api_key is not None and not usable(api_key):
            raise ValueError("the API key is empty, or holds what no header can")  # without the key: this may be logged
        if concurrency < 1:
            raise ValueError(f"a concurrency of {concurrency} sends nothing")
        self._endpoint = f"{url.rstrip('/')}/predictions/{model}"
        self._timeout_s = timeout_s
        self._headers = {"Content-Type": "application/octet-stream"} | ({API_KEY: api_key} if api_key else {})
        self._retries = retries
        self._concurrency = concurrency
        self._closing = threading.Event()
        self._sleep = sleep or self._closing.wait
        self._clock = clock
        self._thread = threading.local()  # its session, and whether that keeps a connection
        self._sessions: weakref.WeakSet[requests.Session] = weakref.WeakSet()  # a thread that ends takes its own along
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(wait=kind is None)

    def close(self, wait: bool = True) -> None:
        """End: what is not sent yet is not sent any more. `wait`: for what is in flight."""
        self._closing.set()
        with self._lock:
            pool, self._pool = self._pool, None
        if pool:
            pool.shutdown(wait=wait, cancel_futures=True)
        with self._lock:
            for session in self._sessions:
                session.close()

    def predict(self, picture: bytes, alphabet: str | None = None, top_k: int | None = None) -> Answer:
        """The service's answer for an encoded picture; `top_k` characters in it, the first included. Raises
        ServiceError.
        """
        if len(picture) > MAX_PICTURE_BYTES:
            raise ServiceError(
                "image_too_large",
                f"the picture is larger than the {MAX_PICTURE_BYTES >> 20} MiB that a request may hold",
            )
        given = {"alphabet": alphabet, "top_k": top_k}
        parameters = {name: str(value) for name, value in given.items() if value is not None}
        end = self._clock() + self._retries.deadline_s
        tried = 0
        while True:
            response = self._post(picture, parameters)
            if response.status_code == 503 and tried < self._retries.times and not self._closing.is_set():
                pause = self._retries.pause_s(tried, response.headers.get("Retry-After"))
                if self._clock() + pause <= end:
                    tried += 1
                    self._sleep(pause)
                    if not self._closing.is_set():
                        continue
            return read_answer(response)

    def predict_many(
        self, pictures: Iterable[bytes | Path], alphabet: str | None = None, top_k: int | None = None
    ) -> Iterator[Result]:
        """A result for each picture, in order; a Path is read by the thread that sends it. What is wrong with one is
        its own result.

        `pictures` is read as results are taken, AHEAD times `concurrency` pictures before them and no further, so it
        may be endless. What it raises itself ends the results.
        """
        waiting: deque[Future[Result]] = deque()
        try:
            for picture in pictures:
                waiting.append(self._threads().submit(self._result, picture, alphabet, top_k))
                if len(waiting) >= AHEAD * self._concurrency:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # who takes no more results wants no more pictures sent
            for future in waiting:
                future.cancel()

    def _threads(self) -> ThreadPoolExecutor:
        """They live as long as the client, and with them their connections."""
        with self._lock:
            if self._closing.is_set():
                raise RuntimeError("this client is closed")
            self._pool = self._pool or ThreadPoolExecutor(self._concurrency, thread_name_prefix="client")
            return self._pool

    def _result(self, picture: bytes | Path, alphabet: str | None, top_k: int | None) -> Result:
        started = time.perf_counter()
        answer = error = None
        try:
            answer = self.predict(picture if isinstance(picture, bytes) else _read(picture), alphabet, top_k)
        except (
            ServiceError
        ) as caught:  # without its traceback, which would keep the picture's bytes as long as the result
            error = ServiceError(caught.code, str(caught), caught.status)
        return Result(picture, answer, error, time.perf_counter() - started)

    def _session(self) -> requests.Session:
        if not hasattr(self._thread, "session"):
            self._thread.session, self._thread.kept = requests.Session(), False
            with self._lock:
                self._sessions.add(self._thread.session)
        session: requests.Session = self._thread.session
        return session

    def _post(self, picture: bytes, parameters: dict[str, str]) -> requests.Response:
        """Send once, or twice where a kept connection broke before a word of the answer. Raises ServiceError without an
        answer.
        """
        session = self._session()
        kept, self._thread.kept = self._thread.kept, False
        try:
            response = session.post(
                self._endpoint,
                params=parameters,
                data=picture,
                headers=self._headers,
                timeout=self._timeout_s,
                allow_redirects=False,
            )
        except requests.RequestException as error:
            if kept and isinstance(error, requests.ConnectionError) and isinstance(_cause(error), BROKEN):
                return self._post(picture, parameters)
            raise self._unanswered(error) from error
        self._thread.kept = response.headers.get("Connection", "").lower() != "close"
        return response

    def _unanswered(self, error: requests.RequestException) -> ServiceError:
        cause = _cause(error)
        if isinstance(error, requests.ConnectTimeout):
            return ServiceError(
                "unreachable", f"{self._endpoint} cannot be reached: no connection within {self._timeout_s[0]:g} s"
            )
        if isinstance(cause, TimeoutError):
            return ServiceError("timeout", f"{self._endpoint} has not answered within {self._timeout_s[1]:g} s")
        reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else cause
        return ServiceError("unreachable", f"{self._endpoint} cannot be reached: {reason}")


def _cause(error: BaseException) -> BaseException:
    """What the system said, below what libraries made of it."""
    inner = error.__cause__ or error.__context__
    while inner:
        if isinstance(inner, OSError) and not isinstance(inner, requests.RequestException):
            return inner
        inner = inner.__cause__ or inner.__context__
    return error


def _read(path: Path) -> bytes:
    """A file's content, of one that is too large the part that shows it. Raises ServiceError."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe may never end
            raise OSError("not a regular file")
        with path.open("rb") as stream:
            return stream.read(MAX_PICTURE_BYTES + 1)
    except OSError as error:
        raise ServiceError("unreadable", error.strerror or str(error)) from error
    except ValueError as error:  # a name that no file can have
        raise ServiceError("unreadable", str(error)) from error

"""What the workers count and time, for Prometheus: together, so that any of them tells the numbers of all.

A worker counts in memory that it maps from files of the folder PROMETHEUS_MULTIPROC_DIR, and serves the sums over all
files on 127.0.0.1, at a port that the workers share (SO_REUSEPORT). The files are numbered, and a worker that starts
goes on with those that nobody has locked: so a worker's death loses no count, and a thousand of them leave no more
files than one.
"""

from __future__ import annotations

import fcntl
import itertools
import logging
import os
import socketserver
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, values
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import MetricsHandler
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from handlers.protocols.messages import STATUS
from handlers.protocols.service import FORM_NAMES, Observer
from handlers.recognizer import Recognizer

log = logging.getLogger(__name__)

FOLDER_VARIABLE, PORT_VARIABLE = "PROMETHEUS_MULTIPROC_DIR", "MODEL_METRICS_PORT"
DEFAULT_PORT = "8083"
START_HEADER = (
    "x-handed-on"  # when the edge had the request, in microseconds of the Unix time; a semicolon; the request's id
)
REQUEST_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 30)
QUEUE_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
PREPARATION_S = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
MODEL_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
COUNTS = (1, 2, 4, 8, 16, 32, 64)
CONFIDENCE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1)


class Metrics(Observer):
    """Every series is made here: each has its zero from the start, and no page of a file is touched for the first time
    later.
    """

    def __init__(self, model: str, version: str, classes: Sequence[str]) -> None:
        own = CollectorRegistry()  # never asked: what is served is read from the files of all
        requests = Histogram(
            "emnist_request_seconds",
            "From the edge's having a request to its answer",
            ["form"],
            buckets=REQUEST_S,
            registry=own,
        )
        self._request_s = {form: requests.labels(form) for form in FORM_NAMES}
        self._queue_s = Histogram(
            "emnist_queue_seconds",
            "From the edge's having a request to the start of its batch",
            buckets=QUEUE_S,
            registry=own,
        )
        self._preparation_s = Histogram(
            "emnist_preparation_seconds", "To decode and prepare a picture", buckets=PREPARATION_S, registry=own
        )
        self._model_s = Histogram("emnist_model_seconds", "A pass of the network", buckets=MODEL_S, registry=own)
        self._pictures = Histogram(
            "emnist_model_pictures", "Pictures in a pass of the network", buckets=COUNTS, registry=own
        )
        self._requests = Histogram("emnist_batch_requests", "Requests in a batch", buckets=COUNTS, registry=own)
        self._confidence = Histogram("emnist_confidence", "The answers' confidence", buckets=CONFIDENCE, registry=own)
        answers = Counter(
            "emnist_answers", "Pictures by the character that they were read as", ["character"], registry=own
        )
        characters = dict.fromkeys([*classes, *(label.upper() for label in classes)])
        self._answers = {character: answers.labels(character) for character in characters}
        errors = Counter(
            "emnist_errors", "Requests, and pictures of answered requests, that failed", ["form", "code"], registry=own
        )
        self._errors = {(form, code): errors.labels(form, code) for form in FORM_NAMES for code in STATUS}
        about = Gauge(
            "emnist_model_info",
            "1; its labels tell the model",
            ["model", "version"],
            multiprocess_mode="max",
            registry=own,
        )
        about.labels(model, version).set(1)

    def begun(self, headers: Sequence[Mapping[str, str]]) -> None:
        self._requests.observe(len(headers))
        now = time.time()
        for head in headers:
            seconds = since_start(head, now)
            if seconds is not None:
                self._queue_s.observe(seconds)

    def prepared(self, seconds: float) -> None:
        self._preparation_s.observe(seconds)

    def passed(self, pictures: int, seconds: float) -> None:
        self._pictures.observe(pictures)
        self._model_s.observe(seconds)

    def answered(self, character: str, confidence: float) -> None:
        self._answers[character].inc()
        self._confidence.observe(confidence)

    def failed(self, form: str, code: str) -> None:
        self._errors[form, code].inc()

    def finished(self, forms: Sequence[str], headers: Sequence[Mapping[str, str]]) -> None:
        now = time.time()
        for form, head in zip(forms, headers, strict=True):
            seconds = since_start(head, now)
            if seconds is not None:
                self._request_s[form].observe(seconds)


def since_start(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds since the edge had a request, never below 0 whatever the clock did; None if its header is missing or no
    number.
    """
    text = headers.get(START_HEADER, "").partition(";")[0]
    return max(0.0, now - int(text) / 1e6) if text.isascii() and text.isdigit() and len(text) < 20 else None


class Workers(Collector):
    """How many processes have taken a number in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        taken = sum(_lock(path, fcntl.LOCK_SH) is None for path in self._folder.glob("*.lock"))
        yield GaugeMetricFamily("emnist_workers", "Worker processes that have loaded the model", taken)


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    allow_reuse_port = True
    daemon_threads = True
    number: IO[str]  # kept open for as long as the process has its number

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002  the base class prints a traceback
        log.warning("the metrics could not be told: %r", sys.exception())


def take_number(folder: Path) -> tuple[int, IO[str]]:
    """The lowest number that no other process has, and what keeps it until it is closed, or the process ends."""
    for number in itertools.count():
        lock = _lock(folder / f"{number}.lock", fcntl.LOCK_EX)
        if lock is not None:
            return number, lock
    raise AssertionError


def _lock(path: Path, kind: int) -> IO[str] | None:
    """The file, locked; None if another one has it."""
    file = path.open("a")
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def start(model: str, recognizer: Recognizer) -> Observer:
    """An observer that counts, and its numbers served; where no folder is named, or it cannot be used, one that keeps
    nothing.
    """
    folder = Path(os.environ.get(FOLDER_VARIABLE, ""))
    if not folder.is_absolute():
        return Observer()
    try:
        number, kept = take_number(folder)
        values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]
        metrics = Metrics(model, recognizer.version, recognizer.classes)
        registry = CollectorRegistry()
        registry.register(Workers(folder))
        MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]
        server = _Server(
            ("127.0.0.1", int(os.environ.get(PORT_VARIABLE, DEFAULT_PORT))), MetricsHandler.factory(registry)
        )
    except OSError:  # a service that reads pictures uncounted is better than none
        log.exception("there are no metrics of this worker")
        return Observer()
    server.number = kept
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return metrics

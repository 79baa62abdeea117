"""Sends raw bytes to an HTTP port and judges what comes back."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import time
from dataclasses import dataclass, field

DEADLINE_S = 60.0  # for an answer: the edge's own limits are 2 s in the queue and 30 s at TorchServe
READ_BYTES = 1 << 16
CODES = {
    "invalid_image",
    "unsupported_format",
    "image_too_large",
    "blank_image",
    "unknown_alphabet",
    "bad_request",
    "deadline",
    "overloaded",
}


@dataclass(frozen=True)
class Hostile:
    data: bytes
    allowed: frozenset[int]  # statuses
    ours: bool = True  # whether errors have our form: HAProxy answers what is no HTTP by itself, in HTML
    may_close: bool = False  # whether the connection may be closed without an answer
    may_overload: bool = False  # whether 503 is an answer: `overloaded`, with Retry-After
    half_close: bool = False  # the end of the data is the end of what we send
    deadline_s: float = DEADLINE_S
    pause_s: float = 0.0  # after the data, bytes follow one by one, so far apart, until there is an answer
    slow: bool = False


@dataclass(frozen=True)
class Outcome:
    answers: list[tuple[int, dict[str, str], bytes]] = field(default_factory=list)
    closed: bool = False
    seconds: float = 0.0


def send(url: str, hostile: Hostile) -> Outcome:
    """All answers until the connection is closed, or until one is there and nothing follows."""
    host, port = url.removeprefix("http://").split(":")
    started = time.monotonic()
    received, rest, closed, sent_at = b"", memoryview(hostile.data), False, started
    with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as connection:
        connection.setblocking(False)
        while (left := started + hostile.deadline_s - time.monotonic()) > 0:
            wait = min(left, hostile.pause_s or left, 1.0 if received else left)
            readable, writable, _ = select.select([connection], [connection] if rest else [], [], wait)
            try:
                if readable:
                    data = connection.recv(READ_BYTES)
                    received += data
                    closed = not data
                    if closed:
                        break
                elif writable:
                    rest = rest[connection.send(rest[:READ_BYTES]) :]
                    if not rest and hostile.half_close:
                        connection.shutdown(socket.SHUT_WR)
                elif received and answers_in(received):
                    break
                elif hostile.pause_s and not rest and time.monotonic() - sent_at >= hostile.pause_s:
                    sent_at = time.monotonic()
                    connection.send(b"a")
            except OSError as error:
                closed = not isinstance(error, BlockingIOError)
                if closed:  # an answer may be there still
                    rest = memoryview(b"")
                    with contextlib.suppress(OSError):
                        received += connection.recv(READ_BYTES)
                    break
    return Outcome(answers_in(received), closed, time.monotonic() - started)


def answers_in(received: bytes) -> list[tuple[int, dict[str, str], bytes]]:
    """Status, headers and body of each whole answer; 100 Continue is none."""
    found = []
    while received.startswith(b"HTTP/1.") and b"\r\n\r\n" in received:
        head, _, received = received.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", len(received)))
        code = int(status.split()[1])
        if code >= 200:
            found.append((code, headers, received[:length]))
        received = received[length:] if code >= 200 else received
    return found


def faults(hostile: Hostile, outcome: Outcome) -> list[str]:
    """What is wrong with the answers to a request."""
    if outcome.seconds >= hostile.deadline_s:
        return [f"no answer and no end within {hostile.deadline_s} s"]
    if not outcome.answers:
        return [] if hostile.may_close else ["no answer"]
    return [fault for answer in outcome.answers for fault in faults_of(hostile, *answer)]


def faults_of(hostile: Hostile, status: int, headers: dict[str, str], body: bytes) -> list[str]:
    html = body.startswith((b"<html>", b"<!doctype html>"))  # HAProxy's own, or the page
    if status == 503 and hostile.may_overload:
        return [] if headers.get("retry-after") else ["503 without Retry-After"]
    if status not in hostile.allowed:
        return [f"status {status}: {body[:200]!r}"]
    if not hostile.ours and (html or not body):
        return []
    if (
        headers.get("content-type") not in {"application/json", "application/octet-stream"}
        or "x-model-version" not in headers
    ):
        return [f"status {status}, headers {headers}: {body[:200]!r}"]
    if status == 200 or (not hostile.ours and not body):
        return []
    if not body and not hostile.ours:
        return []
    try:
        error = json.loads(body)["error"]
        code = error["code"] if isinstance(error, dict) else error.partition(":")[0]
    except (ValueError, LookupError, TypeError):
        return [f"not our form of an error: {body[:200]!r}"]
    return [] if code in CODES else [f"unknown code {code}"]

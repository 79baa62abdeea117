"""The rows of a result: what they hold, their bytes in each format, and how it goes. It needs no model."""

from __future__ import annotations

import csv
import io
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from tqdm import tqdm

log = logging.getLogger(__name__)

PROGRESS_S = 10.0  # between lines of progress, where standard error is no terminal
FORMATS = ("ascii", "csv")
STATUSES = ("ok", "rejected", "error")
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")  # OWASP, "CSV Injection"

Item = TypeVar("Item")


class Row(NamedTuple):
    """A line of the CSV."""

    path: str
    character: str = ""
    ascii: str = ""
    confidence: str = ""
    status: str = "error"  # one of STATUSES
    error: str = ""


def answered(path: str, character: str, confidence: float, min_confidence: float = 0.0) -> Row:
    """The row of a picture that was read."""
    status = "ok" if confidence >= min_confidence else "rejected"
    return Row(path, character, str(ord(character)), f"{confidence:.4f}", status)


def utf_8(text: str) -> bytes:
    """A name that is not UTF-8 is written with its bytes as \\udcXX, so that the result is."""
    return text.encode("utf-8", "backslashreplace")


def csv_bytes(rows: Iterable[Sequence[str]]) -> bytes:
    """Lines as RFC 4180 asks."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return utf_8(text.getvalue())


def escaped(rows: Iterable[Row]) -> Iterator[Row]:
    """Rows whose path no spreadsheet takes for a formula."""
    return (row._replace(path=f"'{row.path}") if row.path.startswith(FORMULA_STARTS) else row for row in rows)


def ascii_bytes(rows: Iterable[Row]) -> bytes:
    """A line `065, path` for each row that is ok; the others are named in the log."""
    lines = []
    for row in rows:
        if row.status == "ok":
            lines.append(f"{int(row.ascii):03d}, {row.path}\n")
        else:
            log.warning(
                "skipped %s: %s", row.path, row.error or f"confidence {row.confidence} is below --min-confidence"
            )
    return utf_8("".join(lines))


def header(form: str) -> bytes:
    return csv_bytes([Row._fields]) if form == "csv" else b""


def encode(rows: Sequence[Row], form: str, escape_formulas: bool) -> bytes:
    """Rows in one of FORMATS."""
    if form == "ascii":
        return ascii_bytes(rows)
    return csv_bytes(escaped(rows) if escape_formulas else rows)


def progress(
    rows: Iterable[list[Item]], total: int, before: int = 0, label: str = "", others: Callable[[], str] = str
) -> Iterator[list[Item]]:
    """Pass rows, or what becomes one each, on; a bar on a terminal, else a line of the log every PROGRESS_S. `before`
    were done earlier.
    """
    started = said = time.monotonic()
    done = before
    with tqdm(total=total, initial=before, unit="img", disable=None) as bar:  # None: where stderr is no terminal
        for block in rows:
            yield block
            done += len(block)
            bar.update(len(block))
            now = time.monotonic()
            if bar.disable and now - said >= PROGRESS_S:
                speed = (done - before) / (now - started)
                left = (total - done) / speed
                log.info(
                    "%s%s of %s pictures, %.0f a second, %.0f s left%s",
                    label,
                    f"{done:,}",
                    f"{total:,}",
                    speed,
                    left,
                    others(),
                )
                said = now


def summary(counts: Counter[str], seconds: float, shards: int = 1) -> str:
    """`seconds` is the sum over `shards`."""
    whose = " of all shards" if shards > 1 else ""
    return f"{counts.total():,} pictures in {seconds:.1f} s{whose}: " + ", ".join(
        f"{counts[status]} {status}" for status in STATUSES
    )

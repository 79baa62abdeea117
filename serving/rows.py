"""Paths of pictures -> rows of the result, their bytes in each format, and how it goes."""

from __future__ import annotations

import csv
import io
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from handlers.recognizer import Recognizer
from serving.pictures import CHUNK, Chunk, decode_all

log = logging.getLogger(__name__)

CHUNKS_AHEAD = 4  # in decoding or waiting for the network, for each process
PROGRESS_S = 10.0  # between lines of progress, where standard error is no terminal
FORMATS = ("ascii", "csv")
STATUSES = ("ok", "rejected", "error")
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")  # OWASP, "CSV Injection"


class Row(NamedTuple):
    """A line of the CSV."""

    path: str
    character: str = ""
    ascii: str = ""
    confidence: str = ""
    status: str = "error"  # one of STATUSES
    error: str = ""


Scored: TypeAlias = tuple[Chunk, npt.NDArray[np.float32]]  # with class probabilities (N, C) of its N good pictures


def score(recognizer: Recognizer, chunk: Chunk) -> Scored:
    """Run the network over a chunk's good pictures, in a batch that is padded to CHUNK."""
    good = len(chunk.images)
    batch = np.zeros((CHUNK, recognizer.input_size, recognizer.input_size), np.uint8)
    batch[:good] = chunk.images
    return chunk, recognizer.probabilities(batch)[:good]


def score_all(recognizer: Recognizer, chunks: Iterable[Chunk], threads: int) -> Iterator[Scored]:
    """Score chunks in order, each by one thread: on all cores that is faster than all threads on one chunk after another."""
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting: deque[Future[Scored]] = deque()
        for chunk in chunks:
            waiting.append(pool.submit(score, recognizer, chunk))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@dataclass(frozen=True)
class Scorer:
    """What turns paths into rows; `pool` holds `processes` decoders, and as many threads score."""

    recognizer: Recognizer
    pool: ProcessPoolExecutor
    processes: int
    alphabet: str
    min_confidence: float

    def rows(self, paths: Iterable[str], folder: Path) -> Iterator[list[Row]]:
        """One row for each of `paths`, which lie below `folder`, in order, in lists of up to CHUNK. Raises what `decode_all` does."""
        fold = self.recognizer.fold(self.alphabet)
        decoded = decode_all(paths, folder, self.recognizer.input_size, self.pool, CHUNKS_AHEAD * self.processes)
        for chunk, probabilities in score_all(self.recognizer, decoded, self.processes):
            answers = iter(fold(probabilities))
            yield [
                Row(path, error=error) if error else self._row(path, fold.characters, next(answers))
                for path, error in zip(chunk.paths, chunk.errors, strict=True)
            ]

    def _row(self, path: str, characters: Sequence[str], folded: npt.NDArray[np.float64]) -> Row:
        best = int(folded.argmax())
        character, confidence = characters[best], float(folded[best])
        status = "ok" if confidence >= self.min_confidence else "rejected"
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
            log.warning("skipped %s: %s", row.path, row.error or f"confidence {row.confidence} is below --min-confidence")
    return utf_8("".join(lines))


def header(form: str) -> bytes:
    return csv_bytes([Row._fields]) if form == "csv" else b""


def encode(rows: Sequence[Row], form: str, escape_formulas: bool) -> bytes:
    """Rows in one of FORMATS."""
    if form == "ascii":
        return ascii_bytes(rows)
    return csv_bytes(escaped(rows) if escape_formulas else rows)


def progress(rows: Iterable[list[Row]], total: int, before: int = 0, label: str = "", others: Callable[[], str] = str) -> Iterator[list[Row]]:
    """Pass rows on; a bar on a terminal, else a line of the log every PROGRESS_S. `before` were done earlier."""
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
                log.info("%s%s of %s pictures, %.0f a second, %.0f s left%s", label, f"{done:,}", f"{total:,}", speed, left, others())
                said = now


def summary(counts: Counter[str], seconds: float, shards: int = 1) -> str:
    """`seconds` is the sum over `shards`."""
    whose = " of all shards" if shards > 1 else ""
    return f"{counts.total():,} pictures in {seconds:.1f} s{whose}: " + ", ".join(f"{counts[status]} {status}" for status in STATUSES)

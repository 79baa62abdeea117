"""A directory of pictures -> CSV, one row a picture.

    python -m serving.batch --input DIR [--output FILE] [--alphabet alnum] [--format csv|ascii] [--min-confidence P]

Pictures are decoded in processes and scored here in batches of one fixed size, so that an answer does not depend on
which pictures it shared a batch with. Exit codes: 0 done (bad pictures are rows), 2 wrong use, 3 no picture found, 1 other.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import logging
import os
import platform
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, NamedTuple, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from handlers.labels import ALPHABET_NAMES, DEFAULT_ALPHABET, UnknownAlphabet
from handlers.recognizer import ModelError, Recognizer
from serving.package import DEFAULT_MODEL
from serving.pictures import CHUNK, CHUNK_TIMEOUT_S, SUFFIXES, Chunk, cores, decode_all, decoders, find_pictures

log = logging.getLogger(__name__)

SAMPLES = Path(__file__).resolve().parent / "samples"
PROGRESS_S = 10.0  # between lines of progress, where standard error is no terminal
CHUNKS_AHEAD = 4  # in decoding or waiting for the network, for each process
HEADER = ("path", "character", "ascii", "confidence", "status", "error")

DONE, FAILED, WRONG_USE, NO_PICTURES = 0, 1, 2, 3


class UsageError(Exception):
    """A call that cannot be carried out as given; the message says what to change."""


@dataclass(frozen=True)
class Settings:
    input: Path
    output: Path | None  # None: standard output
    alphabet: str
    format: str  # csv or ascii
    min_confidence: float
    model: Path
    processes: int  # that decode, and threads that score
    if_empty: str = "fail"  # fail, or samples: score the bundled samples when `input` holds no picture
    keep_old: bool = False  # an earlier file of the name `output` gets another name


class Row(NamedTuple):
    """A line of the CSV."""

    path: str
    character: str = ""
    ascii: str = ""
    confidence: str = ""
    status: str = "error"
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


def rows(settings: Settings, recognizer: Recognizer, paths: Sequence[str], pool: ProcessPoolExecutor) -> Iterator[Row]:
    """One row a path, in order."""
    fold = recognizer.fold(settings.alphabet)
    decoded = decode_all(paths, recognizer.input_size, pool, CHUNKS_AHEAD * settings.processes)
    in_order = iter(paths)
    for chunk, probabilities in score_all(recognizer, decoded, settings.processes):
        answers = iter(fold(probabilities))
        for error, path in zip(chunk.errors, in_order, strict=False):
            if error:
                yield Row(path, error=error)
                continue
            folded: npt.NDArray[np.float64] = next(answers)
            best = int(folded.argmax())
            character, confidence = fold.characters[best], float(folded[best])
            status = "ok" if confidence >= settings.min_confidence else "rejected"
            yield Row(path, character, str(ord(character)), f"{confidence:.4f}", status)


def csv_writer(stream: IO[str]) -> Callable[[Row], None]:
    """A function that writes rows as RFC 4180 asks, after the header."""
    writer = csv.writer(stream)
    writer.writerow(HEADER)
    return writer.writerow


def ascii_writer(stream: IO[str]) -> Callable[[Row], None]:
    """A function that writes `065, path` for a row that is ok and names the others on stderr."""

    def write(row: Row) -> None:
        if row.status == "ok":
            stream.write(f"{int(row.ascii):03d}, {row.path}\n")
        else:
            log.warning("skipped %s: %s", row.path, row.error or f"confidence {row.confidence} is below --min-confidence")

    return write


WRITERS = {"csv": csv_writer, "ascii": ascii_writer}


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[IO[str]]:
    """A text file that appears under `path` once it is complete, and not at all if anything fails."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        # A name that is not UTF-8 is written with its bytes as \udcXX, so that the file is.
        with part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def progress(rows: Iterable[Row], total: int) -> Iterator[Row]:
    """Pass rows on; a bar on a terminal, else a line of the log every PROGRESS_S."""
    if sys.stderr.isatty():
        yield from tqdm(rows, total=total, unit="img")
        return
    started = said = time.perf_counter()
    for done, row in enumerate(rows, 1):
        yield row
        now = time.perf_counter()
        if now - said >= PROGRESS_S:
            speed = done / (now - started)
            log.info("%d of %d pictures, %.0f a second, %.0f s left", done, total, speed, (total - done) / speed)
            said = now


def set_aside(path: Path) -> None:
    """Rename an earlier result, and its .meta.json, after the time it was written, so that the new one replaces nothing."""
    if not path.exists():
        return
    written = datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    for old in (path, meta_path(path)):
        if old.exists():
            old.rename(old.with_name(old.name.replace(path.stem, f"{path.stem}.{written}", 1)))
    log.info("the earlier result is kept as %s", path.with_name(f"{path.stem}.{written}{path.suffix}"))


def meta_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.meta.json")


def run(settings: Settings) -> int:
    """Score the directory; returns the exit code. Raises UsageError, ModelError, OSError."""
    started = time.perf_counter()
    if not settings.input.is_dir():
        raise UsageError(f"--input {settings.input}: there is no such folder")
    if settings.output is not None and settings.output.is_dir():
        raise UsageError(f"--output {settings.output} is a folder; name a file")
    counts: Counter[str] = Counter(ok=0, rejected=0, error=0)
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(decoders(settings.processes))
        recognizer = Recognizer(settings.model)
        try:
            recognizer.fold(settings.alphabet)
        except UnknownAlphabet as error:
            raise UsageError(f"--alphabet: {error}") from error
        if settings.output is None:
            sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace", newline="")  # type: ignore[union-attr]
            stream: IO[str] = sys.stdout
        else:
            try:
                stream = stack.enter_context(atomic(settings.output))
            except OSError as error:
                raise UsageError(f"--output {settings.output} cannot be written: {error.strerror}") from error
        folder = settings.input
        paths = find_pictures(folder)
        if not paths and settings.if_empty == "samples":
            folder = SAMPLES
            log.warning("no picture found below %s: scoring the bundled samples instead", settings.input)
            paths = find_pictures(folder)
        write = WRITERS[settings.format](stream)
        for row in progress(rows(settings, recognizer, paths, pool), len(paths)):
            write(row)
            counts[row.status] += 1
        stream.flush()
        if settings.keep_old and settings.output is not None:
            set_aside(settings.output)
    seconds = time.perf_counter() - started
    log.info("%d pictures in %.1f s: %s", len(paths), seconds, ", ".join(f"{n} {status}" for status, n in counts.items()))
    if settings.output is not None:
        meta = {
            "input": str(folder),
            "model": {"file": settings.model.name, "version": recognizer.version},
            "alphabet": settings.alphabet,
            "min_confidence": settings.min_confidence,
            "pictures": len(paths),
            "counts": dict(counts),
            "seconds": round(seconds, 3),
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "opencv": cv2.__version__},
        }
        with atomic(meta_path(settings.output)) as stream:
            json.dump(meta, stream, indent=2)
        log.info("wrote %s", settings.output)
    if not paths:
        log.warning("no picture found below %s (looked for %s)", settings.input, ", ".join(SUFFIXES))
        return NO_PICTURES
    return DONE


def at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is too few, at least 1")
    return value


def probability(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m serving.batch", description="Score a directory of pictures, one CSV row a picture.")
    parser.add_argument("--input", type=Path, default=SAMPLES, help="the directory, searched recursively; default: the bundled samples")
    parser.add_argument("--output", type=Path, help="the file to write, with FILE.meta.json beside it; default: standard output")
    parser.add_argument("--alphabet", default=DEFAULT_ALPHABET, help=f"one of {', '.join(ALPHABET_NAMES)}; default: %(default)s")
    parser.add_argument("--format", choices=sorted(WRITERS), default="csv", help="ascii: lines as '065, path'; default: %(default)s")
    parser.add_argument("--min-confidence", type=probability, default=0.0, metavar="P", help="answers below P get the status 'rejected'")
    parser.add_argument("--if-empty", choices=("fail", "samples"), default="fail", help="samples: without any picture, score the bundled samples")
    parser.add_argument("--keep-old", action="store_true", help="an earlier FILE keeps its content under a name with its time")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="the exported model")
    parser.add_argument(
        "--processes", type=at_least_one, default=cores(), help="that decode, and as many threads that score; default: the cores, %(default)s"
    )
    settings = Settings(**vars(parser.parse_args(argv)))
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return run(settings)
    except UsageError as error:
        log.error("batch: %s", error)
        return WRONG_USE
    except KeyboardInterrupt:
        log.error("batch: interrupted; nothing was written")
        return FAILED
    except BrokenPipeError:  # the reader of standard output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except BrokenProcessPool:
        log.error("batch: a decoding process was killed, perhaps for lack of memory; try --processes 1")
        return FAILED
    except TimeoutError:
        log.error("batch: no picture was decoded for %.0f s; nothing was written", CHUNK_TIMEOUT_S)
        return FAILED
    except (ModelError, OSError) as error:
        log.error("batch: %s", error)
        return FAILED


if __name__ == "__main__":
    sys.exit(main())

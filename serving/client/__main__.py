"""The client's command line: pictures -> the service -> a table, or the CSV of the batch program.

    python -m serving.client PICTURE... [--url URL] [--alphabet vin] [--top-k 3] [--format table|csv]

A PICTURE is a file, a folder, searched recursively for the same files as the batch program, or - for standard input.
The result alone goes to standard output, row by row and in order. Exit codes: 0 every picture was read, 2 wrong use, 3
no picture found, 4 the service refused some pictures, or a sub-folder cannot be listed, and all others were read, 1
anything else, as a service that cannot be reached.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import tee
from pathlib import Path

from common.folders import SUFFIXES, find_pictures
from common.program import DONE, FAILED, INCOMPLETE, NO_PICTURES, WRONG_USE, at_least_one, not_empty, path, said
from handlers.alphabets import ALPHABET_NAMES
from serving.batch.tables import Row, answered, csv_bytes, header, progress, summary, utf_8
from serving.client.answers import Result
from serving.client.client import CONCURRENCY, CONNECT_TIMEOUT_S, DEFAULT_URL, MAX_PICTURE_BYTES, READ_TIMEOUT_S, Client

log = logging.getLogger(__name__)

STDIN = "-"
API_KEY_VARIABLE = "EMNIST_API_KEY"
GIVE_UP_AFTER = 16  # pictures in a row for which the service could not be reached
MAX_CONCURRENCY = 256  # the edge takes as many; each is a thread here


class UsageError(Exception):
    """Wrong use; the message says how."""


@dataclass(frozen=True)
class Settings:
    pictures: Sequence[str]
    url: str
    alphabet: str | None  # None: the service's default
    top_k: int | None
    format: str  # table or csv
    concurrency: int
    timeout: float  # seconds
    api_key_file: Path | None


def api_key(settings: Settings) -> str | None:
    """From the file, else from the environment. Raises UsageError."""
    if settings.api_key_file is None:
        return os.environ.get(API_KEY_VARIABLE) or None
    try:
        return settings.api_key_file.read_text("ascii").strip()
    except OSError as error:
        raise UsageError(f"--api-key-file: {said(error)}") from error
    except ValueError as error:
        raise UsageError(f"--api-key-file {settings.api_key_file} holds no key") from error


def paths(settings: Settings, unlisted: list[str] | None = None) -> Iterator[str]:
    """What is sent, by its name in the result; sub-folders that cannot be listed are noted. Raises OSError for a folder
    that is given.
    """
    for name in settings.pictures:
        if name != STDIN and Path(name).is_dir():
            yield from find_pictures(Path(name), unlisted)
        else:
            yield name


def picture_of(name: str) -> bytes | Path:
    return sys.stdin.buffer.read(MAX_PICTURE_BYTES + 1) if name == STDIN else Path(name)


def results(settings: Settings, client: Client) -> Iterator[tuple[str, Result]]:
    """Each with its name, which are listed no further ahead than pictures are sent."""
    names, sent = tee(paths(settings))
    return zip(names, client.predict_many(map(picture_of, sent), settings.alphabet, settings.top_k), strict=False)


def watched(pairs: Iterable[tuple[str, Result]], total: int) -> Iterator[tuple[str, Result]]:
    return (pair for (pair,) in progress(([pair] for pair in pairs), total))


def row_of(name: str, result: Result) -> Row:
    if result.answer:
        return answered(name, result.answer.character, result.answer.confidence)
    return Row(name, error=f"{result.error.code}: {result.error}" if result.error else "")


def printable(text: str) -> str:
    """Whatever is no printable character as its escape: a name must not move a terminal's cursor."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def table_line(cells: Sequence[str], width: int) -> bytes:
    """Path, answer, confidence, milliseconds, and what is as long as it is: alternatives or error."""
    name, answer, confidence, milliseconds, rest = map(printable, cells)
    return utf_8(f"{name:<{width}}{answer:>8}{confidence:>12}{milliseconds:>9}  {rest}".rstrip() + "\n")


def cells_of(row: Row, result: Result) -> Sequence[str]:
    others = result.answer.alternatives if result.answer else ()
    rest = row.error or "  ".join(f"{other.character} {other.confidence:.4f}" for other in others)
    return row.path, row.character, row.confidence, f"{1000 * result.seconds:.1f}", rest


def send(settings: Settings, client: Client) -> int:
    """Send the pictures and write their rows; returns the exit code. Raises OSError."""
    started = time.monotonic()
    total = width = 0
    unlisted: list[str] = []
    for name in paths(settings, unlisted):
        total, width = total + 1, max(width, len(printable(name)))
    stream = sys.stdout.buffer
    table = settings.format == "table"
    stream.write(
        table_line(("picture", "answer", "confidence", "ms", "alternatives"), width) if table else header("csv")
    )
    counts: Counter[str] = Counter()
    versions: set[str] = set()
    ends: Counter[int] = Counter()  # by the exit code that a picture asks for
    unreached = 0
    for name, result in results(settings, client) if sys.stdout.isatty() else watched(results(settings, client), total):
        row = row_of(name, result)
        stream.write(table_line(cells_of(row, result), width) if table else csv_bytes([row]))
        stream.flush()  # a row is there when its picture is read
        counts[row.status] += 1
        if result.answer:
            versions.add(result.answer.model_version or "unknown")
        ends[DONE if result.error is None else INCOMPLETE if result.error.refused else FAILED] += 1
        unreached = unreached + 1 if result.error and result.error.code == "unreachable" else 0
        if unreached == GIVE_UP_AFTER < total:
            log.error("client: %s; gave up after %s of %s pictures", result.error, f"{counts.total():,}", f"{total:,}")
            return FAILED
    stream.flush()
    for folder in unlisted:
        log.warning("client: the pictures of a folder are left out, for it cannot be listed: %s", folder)
        ends[INCOMPLETE] += 1
    if not total and not unlisted:
        log.warning("no picture found (looked for %s)", ", ".join(SUFFIXES))
        return NO_PICTURES
    read_by = f"; model {', '.join(sorted(versions))}" if versions else ""
    log.info("%s%s", summary(counts, time.monotonic() - started), read_by)
    return FAILED if ends[FAILED] else INCOMPLETE if ends[INCOMPLETE] else DONE


def seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no time to wait")
    return value


def concurrency(text: str) -> int:
    value = at_least_one(text)
    if value > MAX_CONCURRENCY:
        raise argparse.ArgumentTypeError(f"{text} is too many, at most {MAX_CONCURRENCY}")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m serving.client",
        description="Send pictures to the service, and print what it reads.",
        epilog=(
            "Exit codes: 0 every picture was read; 1 anything else, as a service that cannot be reached; 2 wrong use; 3"
            " no picture found; 4 the service refused some pictures, or a sub-folder could not be listed, and all"
            " others were read."
        ),
    )
    parser.add_argument(
        "pictures", nargs="+", type=not_empty, metavar="PICTURE", help="a file, a folder, or - for standard input"
    )
    parser.add_argument("--url", default=DEFAULT_URL, help="of the service; default: %(default)s")
    parser.add_argument(
        "--alphabet", choices=ALPHABET_NAMES, help="what the characters may be; default: the service's, alnum"
    )
    parser.add_argument(
        "--top-k",
        type=at_least_one,
        metavar="K",
        help="characters in an answer, the first included; default: the service's",
    )
    parser.add_argument(
        "--format",
        choices=("table", "csv"),
        default="table",
        help="csv: as the batch program writes it; default: %(default)s",
    )
    parser.add_argument(
        "--concurrency",
        type=concurrency,
        default=CONCURRENCY,
        metavar="N",
        help="pictures in flight; default: %(default)s",
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=READ_TIMEOUT_S,
        metavar="S",
        help="seconds to wait for an answer; default: %(default)g",
    )
    parser.add_argument(
        "--api-key-file",
        type=path,
        metavar="FILE",
        help=f"holds the key to send along; default: the variable {API_KEY_VARIABLE}",
    )
    settings = Settings(**vars(parser.parse_intermixed_args(argv)))
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        if not sys.stdout:
            raise UsageError("standard output is closed")
        if STDIN in settings.pictures and (not sys.stdin or settings.pictures.count(STDIN) > 1):
            raise UsageError("standard input is closed, or asked for twice")
        try:
            timeout_s = (min(CONNECT_TIMEOUT_S, settings.timeout), settings.timeout)
            client = Client(
                settings.url, timeout_s=timeout_s, api_key=api_key(settings), concurrency=settings.concurrency
            )
        except ValueError as error:
            raise UsageError(str(error)) from error
        with client:
            return send(settings, client)
    except UsageError as error:
        log.error("client: %s", error)
        return WRONG_USE
    except BrokenPipeError:  # the reader of standard output has gone, as `head` does
        return FAILED
    except KeyboardInterrupt:
        log.error("client: interrupted")
        return FAILED
    except (OSError, MemoryError, RuntimeError) as error:
        log.error("client: %s", said(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}")
        return FAILED


if __name__ == "__main__":
    code = main()
    if code == FAILED:
        os._exit(code)  # without waiting for what is in flight, nor flushing to who has gone
    sys.exit(code)

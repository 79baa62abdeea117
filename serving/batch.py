"""A directory of pictures -> CSV, one row a picture.

    python -m serving.batch --input DIR [--output FILE] [--alphabet alnum] [--format csv|ascii] [--min-confidence P]

Pictures are decoded in processes and scored here in batches of one fixed size, so that an answer does not depend on
which pictures it shared a batch with. With --output a run that was stopped goes on when it is called again, and several
processes can share it (--shards). Exit codes: 0 done (bad pictures are rows), 2 wrong use, 3 no picture found, 1 other.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import cv2
import torch

from handlers.labels import ALPHABET_NAMES, DEFAULT_ALPHABET, UnknownAlphabet
from handlers.recognizer import ModelError, Recognizer
from serving.package import DEFAULT_MODEL
from serving.pictures import SUFFIXES, Stuck, cores, decoders, find_pictures
from serving.plan import UsageError, check, make_plan, read_plan, run_folder
from serving.rows import FORMATS, STATUSES, Scorer, encode, header, progress, summary
from serving.shards import Attempt, DamagedShard, Run, merged, remove_run, unfinished

log = logging.getLogger(__name__)

SAMPLES = Path(__file__).resolve().parent / "samples"

DONE, FAILED, WRONG_USE, NO_PICTURES = 0, 1, 2, 3
FAULTS = (KeyboardInterrupt, BrokenProcessPool, Stuck, DamagedShard, ModelError, OSError)  # that end a run in one line


class Stopped(Exception):
    """A run that ended before its time and can go on; the message says why and how far it came."""


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
    escape_formulas: bool = False
    run: str | None = None  # None: named by the pictures
    shards: int = 1
    shard: int = 0  # the one that is scored here

    def folders(self) -> list[Path]:
        """Whose pictures are scored: those of the first that holds any."""
        return [self.input, SAMPLES] if self.if_empty == "samples" else [self.input]


def exit_code(settings: Settings, pictures: int) -> int:
    if pictures:
        return DONE
    log.warning("no picture found below %s (looked for %s)", settings.input, ", ".join(SUFFIXES))
    return NO_PICTURES


def warn_of_samples(settings: Settings, folder: Path) -> None:
    if folder != settings.input:
        log.warning("no picture found below %s: scoring the bundled samples instead", settings.input)


def to_stdout(settings: Settings, scorer: Scorer) -> int:
    """Score to standard output; returns the exit code. Raises FAULTS."""
    started = time.monotonic()
    for folder in settings.folders():
        total = sum(1 for _ in find_pictures(folder))
        if total:
            break
    warn_of_samples(settings, folder)
    counts: Counter[str] = Counter()
    stream = sys.stdout.buffer
    stream.write(header(settings.format))
    for rows in progress(scorer.rows(find_pictures(folder), folder), total):
        stream.write(encode(rows, settings.format, settings.escape_formulas))
        stream.flush()
        counts.update(row.status for row in rows)
    stream.flush()
    log.info(summary(counts, time.monotonic() - started))
    return exit_code(settings, total)


def to_file(settings: Settings, output: Path, scorer: Scorer) -> int:
    """Score a shard of a run that writes `output`, and merge if it was the last; returns the exit code. Raises FAULTS, Stopped."""
    shared = {
        "input": str(settings.input),
        "model": {"file": settings.model.name, "version": scorer.recognizer.version},
        "alphabet": settings.alphabet,
        "min_confidence": settings.min_confidence,
        "format": settings.format,
        "escape_formulas": settings.escape_formulas,
        "shards": settings.shards,
    }
    plan = None
    if settings.run is not None:
        folder = run_folder(output, settings.run)
        plan = read_plan(folder)  # before the look at the result: a merge writes that first, and then removes the plan
        result = merged(output)
        if result is not None and result.get("run") == settings.run:
            check(result | {"input": str(settings.input)}, shared, str(output), "name another --run")
            remove_run(folder)
            log.info("run %s is complete already: %s", settings.run, output)
            return exit_code(settings, result["pictures"])
    plan = plan or make_plan(output, settings.run, settings.shards, shared, settings.folders())
    run = Run(output, plan)
    check(plan.settings, shared, str(run.folder), "finish it with the same settings, or delete it")
    others = [path.name for path in unfinished(output) if path != run.folder]
    if others:
        log.info("other runs of %s are unfinished, delete what is not wanted: %s", output, ", ".join(others))
    warn_of_samples(settings, Path(plan.folder))
    try:
        return finish(settings, run, scorer)
    except FAULTS as error:
        if run.is_merged():
            log.info("%s is complete", output)
            return exit_code(settings, plan.pictures)
        kept = f"{run.done(settings.shard):,} of {run.pictures(settings.shard):,} pictures"
        raise Stopped(f"{reason(error)} after {kept}; the same command goes on from there") from error


def finish(settings: Settings, run: Run, scorer: Scorer) -> int:
    """Complete the shard and, if it is the last, the run; a shard whose rows were damaged meanwhile is scored once more."""

    def describe(counts: Counter[str], seconds: float) -> dict[str, Any]:
        return run.plan.settings | {
            "input": run.plan.folder,
            "pictures": run.plan.pictures,
            "counts": {status: counts[status] for status in STATUSES},
            "seconds": round(seconds, 3),
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "opencv": cv2.__version__},
        }

    score_shard(settings, run, settings.shard, scorer)
    repaired = set()
    while not (missing := run.missing()):
        try:
            facts = run.merge(header(settings.format), settings.keep_old, describe)
            log.info("%s; wrote %s", summary(Counter(facts["counts"]), facts["seconds"]), run.output)
            return exit_code(settings, run.plan.pictures)
        except DamagedShard as damage:
            if damage.shard in repaired or run.is_merged():
                raise
            log.warning("%s: it begins anew", damage)
            repaired.add(damage.shard)
            run.forget(damage.shard)
            score_shard(settings, run, damage.shard, scorer)
    if run.is_merged():  # by another, which has removed what was looked for
        remove_run(run.folder)
        log.info("%s is complete", run.output)
    else:
        log.info("shard %d of %d is complete; not yet: %s", settings.shard, settings.shards, ", ".join(map(str, missing)))
    return exit_code(settings, run.plan.pictures)


def score_shard(settings: Settings, run: Run, shard: int, scorer: Scorer) -> None:
    """Bring a shard from where its marker says it is to its end. Its marker is put anew even if nothing is left to do."""

    def others() -> str:
        return f"; all shards: {sum(map(run.done, range(settings.shards))):,} of {run.plan.pictures:,}" if settings.shards > 1 else ""

    marker = run.resume(shard)
    total = run.pictures(shard)
    label = f"shard {shard} of {settings.shards}: " if settings.shards > 1 else ""
    if marker.done:
        log.info("%sgoing on after %s of %s pictures", label, f"{marker.done:,}", f"{total:,}")
    rows = scorer.rows(islice(run.paths(shard), marker.done, None), Path(run.plan.folder))
    with Attempt(run, marker) as attempt:
        for block in progress(rows, total, marker.done, label, others):
            attempt.add(encode(block, settings.format, settings.escape_formulas), Counter(row.status for row in block))
        attempt.save(complete=True)


def run(settings: Settings) -> int:
    """Score the directory; returns the exit code. Raises UsageError, Stopped, FAULTS."""
    if not settings.input.is_dir():
        raise UsageError(f"--input {settings.input}: there is no such folder")
    if settings.output is not None and settings.output.is_dir():
        raise UsageError(f"--output {settings.output} is a folder; name a file")
    if settings.output is None and (settings.shards > 1 or settings.run is not None):
        raise UsageError("--shards and --run need --output")
    if settings.shard not in range(settings.shards):
        raise UsageError(f"--shard {settings.shard} is not one of --shards {settings.shards}: 0 to {settings.shards - 1}")
    with decoders(settings.processes) as pool:
        recognizer = Recognizer(settings.model)
        try:
            recognizer.fold(settings.alphabet)
        except UnknownAlphabet as error:
            raise UsageError(f"--alphabet: {error}") from error
        scorer = Scorer(recognizer, pool, settings.processes, settings.alphabet, settings.min_confidence)
        if settings.output is None:
            return to_stdout(settings, scorer)
        return to_file(settings, settings.output, scorer)


def reason(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, BrokenProcessPool):
        return "a decoding process was killed, perhaps for lack of memory (try --processes 1)"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


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


def run_name(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    return text


def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    """End the run, once: a second signal must not end what keeps its work."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m serving.batch", description="Score a directory of pictures, one CSV row a picture.")
    parser.add_argument("--input", type=Path, default=SAMPLES, help="the directory, searched recursively; default: the bundled samples")
    parser.add_argument("--output", type=Path, help="the file to write, with FILE.meta.json beside it; default: standard output")
    parser.add_argument("--alphabet", default=DEFAULT_ALPHABET, help=f"one of {', '.join(ALPHABET_NAMES)}; default: %(default)s")
    parser.add_argument("--format", choices=FORMATS, default="csv", help="ascii: lines as '065, path'; default: %(default)s")
    parser.add_argument("--min-confidence", type=probability, default=0.0, metavar="P", help="answers below P get the status 'rejected'")
    parser.add_argument("--if-empty", choices=("fail", "samples"), default="fail", help="samples: without any picture, score the bundled samples")
    parser.add_argument("--keep-old", action="store_true", help="an earlier FILE keeps its content under a name with its time")
    parser.add_argument(
        "--escape-formulas", action="store_true", help="a path that a spreadsheet would run gets a ' before it, and then is not the file's name"
    )
    parser.add_argument("--run", type=run_name, metavar="ID", help="names the run, whose pictures are listed once; default: by the pictures")
    parser.add_argument("--shards", type=at_least_one, default=1, metavar="N", help="in how many parts the run is scored; default: %(default)s")
    parser.add_argument(
        "--shard",
        type=int,
        default=os.environ.get("JOB_COMPLETION_INDEX", "0"),
        metavar="I",
        help="the part to score, 0 to N-1; default: JOB_COMPLETION_INDEX, else 0; whoever completes the last one writes FILE",
    )
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="the exported model")
    parser.add_argument(
        "--processes", type=at_least_one, default=cores(), help="that decode, and as many threads that score; default: the cores, %(default)s"
    )
    settings = Settings(**vars(parser.parse_args(argv)))
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    handlers = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return run(settings)
    except UsageError as error:
        log.error("batch: %s", error)
        return WRONG_USE
    except BrokenPipeError:  # the reader of standard output has gone, as `head` does
        return FAILED
    except (Stopped, *FAULTS) as error:
        log.error("batch: %s", reason(error))
        return FAILED
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    code = main()
    if code == FAILED:
        os._exit(code)  # Python would wait for a decoder that hangs in a read which nothing ends, and flush to who has gone
    sys.exit(code)

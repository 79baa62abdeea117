"""Rows -> standard output, or a file that several processes may write together and that goes on where it was
stopped.
"""

from __future__ import annotations

import logging
import platform
import sys
import time
from collections import Counter
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import torch

from common.folders import find_pictures
from common.program import said
from handlers.recognizer import ModelError
from serving.batch.decoding import Stuck
from serving.batch.merge import is_merged, merge, merged, remove_run, unfinished
from serving.batch.plan import check, make_plan, run_folder
from serving.batch.scoring import Scorer
from serving.batch.shards import Attempt, DamagedShard, Run
from serving.batch.tables import encode, header, progress, summary

log = logging.getLogger(__name__)

SAMPLES = Path(__file__).resolve().parents[1] / "samples"

# What ends a run in one line. RuntimeError: no memory for torch, no more threads, a decoder that was killed.
FAULTS = (KeyboardInterrupt, Stuck, DamagedShard, ModelError, OSError, MemoryError, RuntimeError)


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


def warn_of_samples(settings: Settings, folder: Path) -> None:
    if folder != settings.input:
        log.warning("no picture found below %s: scoring the bundled samples instead", settings.input)


class Found(NamedTuple):
    """What a run has scored: how many pictures, and the sub-folders that could not be listed, each with the reason."""

    pictures: int
    unlisted: list[str]


def to_stdout(settings: Settings, scorer: Scorer) -> Found:
    """Score to standard output. Raises FAULTS."""
    started = time.monotonic()
    unlisted: list[str] = []
    for folder in settings.folders():
        total = sum(1 for _ in find_pictures(folder, unlisted))
        if total or unlisted:
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
    return Found(total, unlisted)


def to_file(settings: Settings, output: Path, scorer: Scorer) -> Found:
    """Score a shard of a run that writes `output`, and merge if it was the last.

    Returns what the whole run has. Raises UsageError, Stopped, and FAULTS before anything was scored.
    """
    shared = {
        "input": str(settings.input),
        "model": {"file": settings.model.name, "version": scorer.recognizer.version},
        "alphabet": settings.alphabet,
        "min_confidence": settings.min_confidence,
        "format": settings.format,
        "escape_formulas": settings.escape_formulas,
        "shards": settings.shards,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "opencv": cv2.__version__},
    }
    result = finished(settings, output)
    if not result:
        plan = make_plan(output, settings.run, settings.shards, shared, settings.folders())
        result = finished(settings, output)  # others may have merged while the pictures were listed
    if result:
        check(result, shared, str(output), "name another --run")
        remove_run(run_folder(output, result["run"]))
        log.info("run %s is complete already: %s", settings.run, output)
        return Found(result["pictures"], result["unlisted"])
    run = Run(output, plan)
    check(plan.settings, shared, str(run.folder), "finish it with the same settings, or delete it")
    others = [path.name for path in unfinished(output) if path != run.folder]
    if others:
        log.info("other runs of %s are unfinished, delete what is not wanted: %s", output, ", ".join(others))
    warn_of_samples(settings, Path(plan.folder))
    try:
        finish(settings, run, scorer)
    except FAULTS as error:
        if not is_merged(run):
            kept = f"{run.done(settings.shard):,} of {run.pictures(settings.shard):,} pictures"
            raise Stopped(f"{reason(error)} after {kept}; the same command goes on from there") from error
        end_after_others(run)
    return Found(plan.pictures, plan.unlisted)


def finished(settings: Settings, output: Path) -> dict[str, Any] | None:
    """What lies in the .meta.json of `output` if the run that `settings` name wrote it."""
    result = merged(output)
    return result if result and settings.run is not None and result.get("run") == settings.run else None


def finish(settings: Settings, run: Run, scorer: Scorer) -> None:
    """Complete the shard and, if it is the last, the run; a shard whose rows were damaged meanwhile is scored once
    more.
    """
    score_shard(settings, run, settings.shard, scorer)
    repaired = set()
    while not (missing := run.missing()):
        try:
            facts = merge(run, header(settings.format), settings.keep_old)
            log.info("%s; wrote %s", summary(Counter(facts["counts"]), facts["seconds"], run.plan.shards), run.output)
            return
        except DamagedShard as damage:
            if damage.shard in repaired or is_merged(run):
                raise
            repaired.add(damage.shard)
            score_shard(settings, run, damage.shard, scorer)
    if is_merged(run):
        end_after_others(run)
    else:
        names = ", ".join(map(str, missing))
        log.warning(
            "shard %d of %d is complete; not yet: %s; whoever completes the last writes %s",
            settings.shard,
            run.plan.shards,
            names,
            run.output,
        )


def end_after_others(run: Run) -> None:
    """Clean up after a run that another process merged: a marker of this one may have come into its folder later."""
    remove_run(run.folder)
    log.info("%s is complete", run.output)


def score_shard(settings: Settings, run: Run, shard: int, scorer: Scorer) -> None:
    """Bring a shard from where its marker says it is to its end. Its marker is put anew even if nothing is left to
    do.
    """

    def others() -> str:
        return (
            f"; all shards: {sum(map(run.done, range(run.plan.shards))):,} of {run.plan.pictures:,}"
            if run.plan.shards > 1
            else ""
        )

    marker = run.resume(shard)
    total = run.pictures(shard)
    label = f"shard {shard} of {run.plan.shards}: " if run.plan.shards > 1 else ""
    if marker.done:
        log.info("%sgoing on after %s of %s pictures", label, f"{marker.done:,}", f"{total:,}")
    rows = scorer.rows(islice(run.paths(shard), marker.done, None), Path(run.plan.folder))
    with Attempt(run, marker) as attempt:
        for block in progress(rows, total, marker.done, label, others):
            attempt.add(encode(block, settings.format, settings.escape_formulas), Counter(row.status for row in block))
        attempt.save(complete=True)


def reason(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, BrokenProcessPool):
        return "a decoding process was killed, perhaps for lack of memory (try --processes 1)"
    if isinstance(error, OSError):
        return said(error)
    if isinstance(error, (MemoryError, RuntimeError)):  # TorchScript's ends with the reason, after a trace
        return f"{type(error).__name__}: {error}".strip(": \n").rpartition("\n")[2]
    return str(error)

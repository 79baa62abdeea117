"""Rows -> standard output, or a file that several processes may write together and that goes on when it was stopped."""

from __future__ import annotations

import logging
import platform
import sys
import time
from collections import Counter, deque
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import torch

from common.folders import find_pictures
from common.program import said
from handlers.recognizer import ModelError
from serving.batch.blocks import Block, DamagedBlocks, Store
from serving.batch.decoding import Stuck
from serving.batch.manifest import UsageError, check, make_manifest, remove_run, run_folder, unfinished
from serving.batch.result import is_merged, merge, merged
from serving.batch.scoring import Scorer
from serving.batch.tables import encode, header, progress, summary

log = logging.getLogger(__name__)

SAMPLES = Path(__file__).resolve().parents[1] / "samples"

# What ends a run in one line. RuntimeError: no memory for torch, no more threads, a decoder that was killed.
FAULTS = (KeyboardInterrupt, Stuck, DamagedBlocks, ModelError, OSError, MemoryError, RuntimeError)


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
    """Score a shard of the run that writes `output`: list, score what is not there, merge when all is there.

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
        try:
            manifest = make_manifest(output, settings.run, settings.shards, shared, settings.folders())
        except (FileNotFoundError, UsageError):  # of a folder that others, who have merged, are removing
            if not finished(settings, output):
                raise
        result = finished(settings, output)  # others may have merged while the pictures were listed
    if result:
        check(result, shared, str(output), "name another --run")
        remove_run(run_folder(output, result["run"]))
        log.info("run %s is complete already: %s", settings.run, output)
        return Found(result["pictures"], result["unlisted"])
    store = Store(output, manifest)
    check(manifest.settings, shared, str(store.run_folder), "finish it with the same settings, or delete it")
    if others := [run.name for run in unfinished(output) if run != store.run_folder]:
        log.info("other runs of %s are unfinished, delete what is not wanted: %s", output, ", ".join(others))
    warn_of_samples(settings, Path(manifest.folder))
    mine = manifest.blocks(settings.shard)
    try:
        score(settings, store, store.missing(mine), manifest.pictures_in(mine), scorer)
        finish(settings, store, output, scorer)
    except FAULTS as error:
        if not is_merged(output, manifest):
            kept = f"{store.pictures_kept(mine):,} of {manifest.pictures_in(mine):,} pictures"
            raise Stopped(f"{reason(error)} after {kept}; the same command goes on from there") from error
        remove_run(store.run_folder)
        log.info("%s is complete", output)  # another process has merged: this one found the store gone
    return Found(manifest.pictures, manifest.unlisted)


def finished(settings: Settings, output: Path) -> dict[str, Any] | None:
    """What lies in the .meta.json of `output` if the run that `settings` name wrote it."""
    result = merged(output)
    return result if result and settings.run is not None and result.get("run") == settings.run else None


def score(settings: Settings, store: Store, blocks: list[int], total: int, scorer: Scorer) -> None:
    """Score and keep `blocks`, the last of `total` pictures. Raises FAULTS.

    All of them are one stream, so that no decoder waits at the end of a block.
    """
    manifest, many = store.manifest, settings.shards > 1
    label = f"shard {settings.shard} of {settings.shards}: " if many else ""
    before = total - manifest.pictures_in(blocks)
    if before:
        log.info("%sgoing on after %s of %s pictures", label, f"{before:,}", f"{total:,}")

    def others() -> str:
        return f"; all shards: {store.pictures_kept(manifest.blocks()):,} of {manifest.pictures:,}" if many else ""

    waiting, rows, started = deque(blocks), [], time.monotonic()
    scored = scorer.rows(store.paths(blocks), Path(manifest.folder))
    for batch in progress(scored, total, before, label, others):
        rows += batch
        if len(rows) == manifest.rows(waiting[0]):
            content = encode(rows, settings.format, settings.escape_formulas)
            seconds = time.monotonic() - started
            store.write(waiting.popleft(), Block(content, Counter(row.status for row in rows), seconds))
            rows, started = [], started + seconds


def finish(settings: Settings, store: Store, output: Path, scorer: Scorer) -> None:
    """Merge if all blocks are there. Those that were damaged meanwhile are scored again, once. Raises FAULTS."""
    if missing := store.missing(store.manifest.blocks()):
        shards = ", ".join(map(str, sorted(set(map(store.manifest.shard, missing)))))
        done = f"shard {settings.shard} of {settings.shards} is complete"
        log.warning("%s; not yet: %s; whoever completes the last writes %s", done, shards, output)
        return
    try:
        facts = merge(store, output, header(settings.format), settings.keep_old)
    except DamagedBlocks as damage:
        log.warning("%s; scoring again", damage)
        score(settings, store, damage.blocks, store.manifest.pictures_in(damage.blocks), scorer)
        facts = merge(store, output, header(settings.format), settings.keep_old)
    log.info("%s; wrote %s", summary(Counter(facts["counts"]), facts["seconds"], settings.shards), output)


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

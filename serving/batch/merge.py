"""The result of a run: its shards put together under the result's name, then the .meta.json that makes it complete."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.files import move, unique, written
from serving.batch.plan import BLOCK
from serving.batch.shards import DamagedShard, Run
from serving.batch.tables import STATUSES

log = logging.getLogger(__name__)


def merge(run: Run, header: bytes, keep_old: bool) -> dict[str, Any]:
    """Put the rows of all shards together as the output, write its .meta.json, remove the folder; returns what
    .meta.json holds.

    Several may merge at once: they write the same rows. Raises DamagedShard, UsageError, OSError.
    """
    markers = [run.marker(shard) for shard in range(run.plan.shards)]
    part, digest = run.folder / f"part-{unique()}", hashlib.sha256(header)
    with written(part) as stream:
        stream.write(header)
        for marker in markers:
            if marker.done != marker.pictures:  # another that merged may be removing the markers
                raise DamagedShard(marker.shard, run.marker_path(marker.shard, True))
            for segment in marker.segments:
                for block in run.read(marker.shard, segment):
                    digest.update(block)
                    stream.write(block)
    if keep_old:
        set_aside(run, digest.hexdigest())
    move(part, run.output)
    counts: Counter[str] = Counter()
    for marker in markers:
        counts.update(marker.counts or {})
    facts = run.plan.settings | {
        "folder": run.plan.folder,
        "pictures": run.plan.pictures,
        "unlisted": run.plan.unlisted,
        "counts": {status: counts[status] for status in STATUSES},
        "seconds": round(sum(marker.seconds for marker in markers), 3),
        "run": run.plan.run,
        "plan": run.plan.token,
        "sha256": digest.hexdigest(),
        "listing_sha256": run.plan.listing,
    }
    run.put(meta_path(run.output), json.dumps(facts, indent=2).encode())
    remove_run(run.folder)
    return facts


def set_aside(run: Run, sha256: str) -> None:
    """Keep an earlier output of other content, and its .meta.json, under a name with the time it was written.

    They are copied before anything is replaced, the output last: so whoever reads a new .meta.json finds the copy
    there.
    """
    with contextlib.suppress(FileNotFoundError), run.output.open("rb") as stream:
        content = hashlib.file_digest(stream, "sha256").hexdigest()
        if content == sha256:
            return
        time_written = datetime.fromtimestamp(os.fstat(stream.fileno()).st_mtime, UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        kept = run.output.with_name(f"{run.output.stem}.{time_written}{run.output.suffix}")
        facts = merged(run.output)
        if kept.exists():
            return
        # Else it is of another run, which was stopped before it wrote its own.
        if facts and facts.get("sha256") == content:
            run.put(meta_path(kept), json.dumps(facts, indent=2).encode())
        part = run.folder / f"part-{unique()}"
        stream.seek(0)
        with written(part) as copy:
            shutil.copyfileobj(stream, copy, BLOCK)
        move(part, kept)
        log.info("the earlier result is kept as %s", kept)


def meta_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.meta.json")


def merged(output: Path) -> dict[str, Any] | None:
    """What lies in the .meta.json of a complete output; None if there is none."""
    try:
        facts = json.loads(meta_path(output).read_bytes())
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) and output.exists() else None


def is_merged(run: Run) -> bool:
    return (merged(run.output) or {}).get("plan") == run.plan.token


def remove_run(folder: Path) -> None:
    """Remove a run's folder, the plan last and at once: what a kill leaves is a run to go on with, or nothing that
    counts.
    """
    with contextlib.suppress(OSError):  # another that merged may be faster
        for entry in folder.iterdir():
            if entry.is_file():
                entry.unlink(missing_ok=True)
        (folder / "plan").rename(folder / f"plan-{unique()}")
    shutil.rmtree(folder, ignore_errors=True)


def unfinished(output: Path) -> list[Path]:
    """The folders of all runs that were to write `output`, as far as they can be seen."""
    named = (path for path in output.parent.iterdir() if path.name.startswith(f"{output.name}.run-"))
    return sorted(path for path in named if os.path.isdir(path / "plan"))  # noqa: PTH112  Path.is_dir raises for another user's

"""The result of a run: FILE, the rows of all blocks, and FILE.meta.json, which makes it complete."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.files import move, written
from serving.batch.blocks import Store
from serving.batch.manifest import Manifest, remove_run
from serving.batch.tables import STATUSES

log = logging.getLogger(__name__)


def merge(store: Store, output: Path, header: bytes, keep_old: bool) -> dict[str, Any]:
    """Write `output` and its .meta.json, and remove the run's folder; returns what .meta.json holds.

    Several processes may merge at once: they write the same rows. Raises DamagedBlocks, OSError.
    """
    manifest = store.manifest
    part, sha256, counts, seconds = store.concatenate(header)
    if keep_old:
        set_aside(store, output, sha256)
    move(part, output)
    facts = manifest.settings | {
        "folder": manifest.folder,
        "pictures": manifest.pictures,
        "unlisted": manifest.unlisted,
        "counts": {status: counts[status] for status in STATUSES},
        "seconds": round(seconds, 3),
        "run": manifest.run,
        "plan": manifest.token,
        "sha256": sha256,
        "listing_sha256": manifest.listing_sha256,
    }
    store.put(meta_path(output), json.dumps(facts, indent=2).encode())
    remove_run(store.run_folder)
    return facts


def set_aside(store: Store, output: Path, sha256: str) -> None:
    """Copy an earlier output of other content, and its .meta.json, to a name with the time it was written.

    The copies are there before anything is replaced, the output's last. Raises OSError.
    """
    with contextlib.suppress(FileNotFoundError), output.open("rb") as stream:
        content = hashlib.file_digest(stream, "sha256").hexdigest()
        time_written = datetime.fromtimestamp(os.fstat(stream.fileno()).st_mtime, UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        kept = output.with_name(f"{output.stem}.{time_written}{output.suffix}")
        if content == sha256 or kept.exists():
            return
        facts = merged(output)
        if facts and facts.get("sha256") == content:  # else the run of `output` was stopped before it wrote its own
            store.put(meta_path(kept), json.dumps(facts, indent=2).encode())
        part = store.part()
        stream.seek(0)
        with written(part) as copy:
            shutil.copyfileobj(stream, copy)
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


def is_merged(output: Path, manifest: Manifest) -> bool:
    return (merged(output) or {}).get("plan") == manifest.token

"""How far each shard of a run is, and the merge into one result.

Until FILE is complete, a folder FILE.run-HEX lies beside it. HEX is a hash of the run's name.

    plan/plan.json, plan/listing       what is scored, how, and in how many shards; never changes
    shard-I-HOST-PID-RANDOM            rows that one attempt at shard I wrote; no other ever writes to it
    shard-I.json, shard-I-done.json    the shard's marker: which bytes of those files count; replaced as a whole

So several processes, on several machines, may work on one run and even on one shard, and each may be killed at any moment.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from serving.files import move, unique, written
from serving.plan import BLOCK, RUN_DIGITS, Plan, UsageError, read_listing, run_folder

log = logging.getLogger(__name__)

CHECKPOINT_S = 2.0  # between two markers of a shard: the work that a kill costs


class DamagedShard(Exception):
    """A marker that cannot be read, or rows that are not those that it counts."""

    def __init__(self, shard: int, file: Path) -> None:
        super().__init__(f"shard {shard}: {file} is damaged or missing")
        self.shard = shard


@dataclass(frozen=True)
class Segment:
    """The first `bytes` bytes of a file in the run's folder."""

    file: str
    bytes: int
    sha256: str
    rows: int  # pictures; not every format has a line for each


@dataclass(frozen=True)
class Marker:
    """How far a shard is: its segments, one after the other, hold the rows of its first `done` pictures."""

    plan: str  # the token
    run: str
    shards: int
    listing: str
    shard: int
    pictures: int  # of the shard
    done: int = 0
    segments: tuple[Segment, ...] = ()
    counts: dict[str, int] | None = None  # pictures by status
    seconds: float = 0.0  # of all attempts
    complete: bool = False


class Run:
    """A planned run, in the folder beside its output."""

    def __init__(self, output: Path, plan: Plan) -> None:
        self.output = output
        self.plan = plan
        self.folder = run_folder(output, plan.run)

    def paths(self, shard: int) -> Iterator[str]:
        return read_listing(self.folder / "plan" / "listing", self.plan.cuts[shard], self.plan.cuts[shard + 1])

    def pictures(self, shard: int) -> int:
        return self.plan.cuts[shard + 1].pictures - self.plan.cuts[shard].pictures

    def marker_path(self, shard: int, complete: bool) -> Path:
        """A complete shard has a name of its own, so that an attempt which lags behind, on a node that was cut off, cannot undo it."""
        return self.folder / f"shard-{shard}{'-done' if complete else ''}.json"

    def marker(self, shard: int) -> Marker:
        """The shard's marker; a new one if there is none. Raises DamagedShard, UsageError if it is of another plan."""
        for path in (self.marker_path(shard, True), self.marker_path(shard, False)):
            try:
                fields = json.loads(path.read_bytes())
                marker = Marker(**fields | {"segments": tuple(Segment(**segment) for segment in fields["segments"])})
            except FileNotFoundError:
                continue
            except (ValueError, TypeError, KeyError) as error:
                raise DamagedShard(shard, path) from error
            if marker.plan != self.plan.token:
                raise UsageError(
                    f"{path} belongs to another plan (run {marker.run}, {marker.shards} shards, listing {marker.listing[:RUN_DIGITS]}); "
                    f"delete {self.folder} to begin anew"
                )
            return marker
        return Marker(self.plan.token, self.plan.run, self.plan.shards, self.plan.listing, shard, self.pictures(shard))

    def resume(self, shard: int) -> Marker:
        """The marker to go on from: a damaged shard begins anew. Raises UsageError, OSError."""
        try:
            marker = self.marker(shard)
            for segment in marker.segments:
                for _ in self.read(shard, segment):
                    pass
        except DamagedShard as damage:
            log.warning("%s: it begins anew", damage)
            self.forget(shard)
            return self.marker(shard)
        return marker

    def forget(self, shard: int) -> None:
        for complete in (False, True):
            self.marker_path(shard, complete).unlink(missing_ok=True)

    def read(self, shard: int, segment: Segment) -> Iterator[bytes]:
        """The bytes of a segment. Raises DamagedShard, at its end, if they are not those that were written."""
        path = self.folder / segment.file
        digest, left = hashlib.sha256(), segment.bytes
        try:
            with path.open("rb") as stream:
                while block := stream.read(min(left, BLOCK)):
                    left -= len(block)
                    digest.update(block)
                    yield block
        except FileNotFoundError as error:
            raise DamagedShard(shard, path) from error
        if left or digest.hexdigest() != segment.sha256:
            raise DamagedShard(shard, path)

    def put(self, path: Path, data: bytes) -> None:
        """Write `path` so that it appears whole and lasts, or not at all. Raises OSError."""
        part = self.folder / f"part-{unique()}"
        with written(part) as stream:
            stream.write(data)
        move(part, path)

    def done(self, shard: int) -> int:
        """How many of the shard's pictures are done and kept, as far as can be seen."""
        try:
            return self.marker(shard).done
        except (DamagedShard, UsageError, OSError):
            return 0

    def missing(self) -> list[int]:
        """The shards that are not complete.

        Call it right after a marker was put in place: an NFS client trusts its copy of a folder for up to a minute, but looks
        again after a change of its own. Of two shards that end at once, so at least one sees the other.
        """
        return [shard for shard in range(self.plan.shards) if not self.marker_path(shard, True).exists()]

    def merge(self, header: bytes, keep_old: bool, describe: Callable[[Counter[str], float], dict[str, Any]]) -> dict[str, Any]:
        """Put the rows of all shards together as the output, write its .meta.json, remove the folder; returns what .meta.json holds.

        `describe` gives its first part from the counts and seconds of all shards. Several may merge at once: they write the
        same rows. Raises DamagedShard, OSError.
        """
        markers = [self.marker(shard) for shard in range(self.plan.shards)]
        part, digest = self.folder / f"part-{unique()}", hashlib.sha256(header)
        with written(part) as stream:
            stream.write(header)
            for marker in markers:
                if not marker.pictures == marker.done == sum(segment.rows for segment in marker.segments):
                    raise DamagedShard(marker.shard, self.marker_path(marker.shard, True))
                for segment in marker.segments:
                    for block in self.read(marker.shard, segment):
                        digest.update(block)
                        stream.write(block)
        if keep_old:
            self.set_aside(digest.hexdigest())
        move(part, self.output)
        counts: Counter[str] = Counter()
        for marker in markers:
            counts.update(marker.counts or {})
        facts = describe(counts, sum(marker.seconds for marker in markers))
        facts |= {"run": self.plan.run, "plan": self.plan.token, "sha256": digest.hexdigest(), "listing_sha256": self.plan.listing}
        self.put(meta_path(self.output), json.dumps(facts, indent=2).encode())
        remove_run(self.folder)
        return facts

    def set_aside(self, sha256: str) -> None:
        """Keep an earlier output of other content, and its .meta.json, under a name with the time it was written.

        They are copied before anything is replaced, the output last: so whoever reads a new .meta.json finds the copy there.
        """
        with contextlib.suppress(FileNotFoundError), self.output.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() == sha256:
                return
            time_written = datetime.fromtimestamp(os.fstat(stream.fileno()).st_mtime, UTC).strftime("%Y%m%dT%H%M%S.%fZ")
            kept = self.output.with_name(f"{self.output.stem}.{time_written}{self.output.suffix}")
            meta = meta_path(self.output).read_bytes() if meta_path(self.output).exists() else None
            if kept.exists():
                return
            if meta is not None:
                self.put(meta_path(kept), meta)
            part = self.folder / f"part-{unique()}"
            stream.seek(0)
            with written(part) as copy:
                shutil.copyfileobj(stream, copy, BLOCK)
            move(part, kept)
            log.info("the earlier result is kept as %s", kept)

    def is_merged(self) -> bool:
        return (merged(self.output) or {}).get("plan") == self.plan.token


class Attempt:
    """One attempt at a shard, from its marker on. As a context it keeps what was done when an exception ends it."""

    def __init__(self, run: Run, marker: Marker) -> None:
        self._run = run
        self._before = self._marker = self._kept = marker
        self._file = run.folder / f"shard-{marker.shard}-{unique()}"
        self._digest = hashlib.sha256()
        self._started = self._saved = time.monotonic()
        self._stream = self._file.open("xb", buffering=0)

    def add(self, rows: bytes, counts: Counter[str]) -> None:
        """Write the rows of some pictures, which `counts` counts by status. Raises OSError."""
        left = memoryview(rows)
        while left:
            left = left[self._stream.write(left) :]
        self._digest.update(rows)
        done = self._marker.done + counts.total()
        segment = Segment(self._file.name, self._stream.tell(), self._digest.hexdigest(), done - self._before.done)
        self._marker = replace(
            self._before,
            done=done,
            segments=(*self._before.segments, segment),
            counts=dict(Counter(self._marker.counts) + counts),
            seconds=self._before.seconds + time.monotonic() - self._started,
        )
        if time.monotonic() - self._saved >= CHECKPOINT_S:
            self.save()

    def save(self, complete: bool = False) -> None:
        """Bring the rows to the disk, then the marker that counts them. Raises OSError."""
        os.fsync(self._stream.fileno())
        marker = replace(self._marker, complete=complete)
        self._run.put(self._run.marker_path(marker.shard, complete), json.dumps(asdict(marker)).encode())
        self._kept = self._marker
        self._saved = time.monotonic()

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._stream:
            if error is not None and self._marker is not self._kept:
                with contextlib.suppress(OSError):
                    self.save()


def meta_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.meta.json")


def merged(output: Path) -> dict[str, Any] | None:
    """What lies in the .meta.json of a complete output; None if there is none."""
    try:
        facts = json.loads(meta_path(output).read_bytes())
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) and output.exists() else None


def remove_run(folder: Path) -> None:
    """Remove a run's folder, the plan last and at once: what a kill leaves is a run to go on with, or nothing that counts."""
    with contextlib.suppress(OSError):  # another that merged may be faster
        for entry in folder.iterdir():
            if entry.is_file():
                entry.unlink(missing_ok=True)
        (folder / "plan").rename(folder / f"plan-{unique()}")
    shutil.rmtree(folder, ignore_errors=True)


def unfinished(output: Path) -> list[Path]:
    """The folders of all runs that were to write `output`."""
    return sorted(path for path in output.parent.iterdir() if path.name.startswith(f"{output.name}.run-"))

"""How far each shard of a run is.

Until FILE is complete, a folder FILE.run-HEX lies beside it. HEX is a hash of the run's name.

    plan/plan.json, plan/listing       what is scored, how, and in how many shards; never changes
    shard-I-HOST-PID-RANDOM            rows that one attempt at shard I wrote; no other ever writes to it
    shard-I.json, shard-I-done.json    the shard's marker: which bytes of those files count; replaced as a whole

So several processes, on several machines, may work on one run and even on one shard, and each may be killed at any
moment.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType

from common.files import move, unique, written
from serving.batch.plan import BLOCK, Plan, UsageError, read_listing, run_folder

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
    shard: int
    pictures: int  # of the shard
    done: int = 0
    segments: tuple[Segment, ...] = ()
    counts: dict[str, int] | None = None  # pictures by status
    seconds: float = 0.0  # of all attempts


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
        """A complete shard has a name of its own, so that an attempt which lags behind, on a node that was cut off,
        cannot undo it.
        """
        return self.folder / f"shard-{shard}{'-done' if complete else ''}.json"

    def load(self, shard: int, complete: bool) -> Marker | None:
        """One of the shard's two markers, None if it is not there. Raises DamagedShard, UsageError if it is of another
        plan, OSError.
        """
        path = self.marker_path(shard, complete)
        try:
            fields = json.loads(path.read_bytes())
            marker = Marker(**fields | {"segments": tuple(Segment(**segment) for segment in fields["segments"])})
            rows = sum(segment.rows for segment in marker.segments)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            raise DamagedShard(shard, path) from error
        if marker.plan != self.plan.token:
            raise UsageError(f"{path} belongs to another plan; delete {self.folder} to begin anew")
        if rows != marker.done or (complete and rows != marker.pictures):
            raise DamagedShard(shard, path)
        return marker

    def marker(self, shard: int) -> Marker:
        """How far the shard is; a new marker if it has none. Raises DamagedShard, UsageError, OSError."""
        return self.load(shard, True) or self.load(shard, False) or Marker(self.plan.token, shard, self.pictures(shard))

    def resume(self, shard: int) -> Marker:
        """The marker to go on from: the farthest whose rows are whole. Raises UsageError, OSError.

        A damaged marker stays until a good one replaces it. So if this process is killed before, the next that merges
        finds the damage, too, where without the marker it would wait for a shard that nobody is left to score.
        """
        for complete in (True, False):
            try:
                marker = self.load(shard, complete)
                if marker:
                    for segment in marker.segments:
                        for _ in self.read(shard, segment):
                            pass
                    return marker
            except DamagedShard as damage:
                log.warning("%s: rows are scored again", damage)
        return Marker(self.plan.token, shard, self.pictures(shard))

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
        """The shards that are not complete; none where no shard has a picture, so that the first to come writes the
        result. Raises OSError.

        Call it right after a marker was put in place: an NFS client trusts its copy of a folder for up to a minute, but
        looks again after a change of its own, and SMB trusts its copy of a missing name, so the folder is read. Of two
        shards that end at once, so at least one sees the other.
        """
        there = set(self.folder.iterdir())
        return [
            shard
            for shard in range(self.plan.shards)
            if self.plan.pictures and self.marker_path(shard, True) not in there
        ]


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
        try:
            os.fsync(self._stream.fileno())
            self._run.put(
                self._run.marker_path(self._marker.shard, complete), json.dumps(asdict(self._marker)).encode()
            )
        except OSError:
            self._marker = self._kept  # the rows may be lost, and Linux tells of it only once
            raise
        self._kept = self._marker
        self._saved = time.monotonic()

    def __enter__(self) -> Attempt:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stream:
            if error is not None and self._marker is not self._kept:
                with contextlib.suppress(OSError):
                    self.save()

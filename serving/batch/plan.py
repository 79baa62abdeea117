"""What a run scores: the listing of its pictures, frozen, cut into shards, and the settings that all shards share."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from common.files import sync, unique, written
from common.folders import find_pictures
from serving.batch.decoding import CHUNK

PICTURE_COST = 32 * 1024  # bytes that take as long to decode as what a picture costs beside its bytes
BLOCK = 1024 * 1024  # bytes read at a time
RUN_DIGITS = 12  # hexadecimal digits of the hash that names a run's folder


class UsageError(Exception):
    """A call that cannot be carried out as given; the message says what to change."""


class Cut(NamedTuple):
    """A place in the listing: what lies before it."""

    pictures: int
    bytes: int


class Listing(NamedTuple):
    """What `write_listing` learned. Chunk k of CHUNK pictures begins at `offsets[k]` in the file; `costs[k]` is the
    cost of all before it.
    """

    identity: str  # changes with the name, size or time of any picture
    sha256: str
    pictures: int
    offsets: list[int]
    costs: list[int]
    unlisted: list[str]  # sub-folders that could not be listed, each with the reason

    def cuts(self, shards: int) -> list[Cut]:
        """Where each shard begins, and the end: N + 1 places.

        Shards are ranges of the listing. It never changes, so a range is as stable as a hash of the path would be; and
        a range is read from one place, holds neighbours on the disk, and makes the merge a concatenation. What a hash
        would give, an even load, comes from the sizes of the files. Cuts lie between chunks, so that the network sees
        the same batches whatever the number of shards.
        """
        places = []
        for shard in range(shards):
            target = self.costs[-1] * shard / shards
            chunk = bisect_left(self.costs, target)
            if chunk and target - self.costs[chunk - 1] < self.costs[chunk] - target:
                chunk -= 1
            places.append(Cut(min(chunk * CHUNK, self.pictures), self.offsets[chunk]))
        return [*places, Cut(self.pictures, self.offsets[-1])]


def write_listing(folder: Path, stream: IO[bytes]) -> Listing:
    """Write the path of every picture below `folder`, NUL behind each. Raises OSError."""
    identity, content = hashlib.sha256(), hashlib.sha256()
    pictures, offset, cost = 0, 0, 0
    offsets, costs = [], []
    unlisted: list[str] = []
    for path in find_pictures(folder, unlisted):
        if pictures % CHUNK == 0:
            offsets.append(offset)
            costs.append(cost)
        try:
            status = os.stat(path)  # noqa: PTH116  a Path a picture is slow
            size, changed = status.st_size, status.st_mtime_ns
        except OSError:
            size, changed = 0, 0
        line = os.fsencode(path) + b"\0"
        stream.write(line)
        content.update(line)
        identity.update(b"%b%d %d\0" % (line, size, changed))
        pictures, offset, cost = pictures + 1, offset + len(line), cost + size + PICTURE_COST
    return Listing(identity.hexdigest(), content.hexdigest(), pictures, [*offsets, offset], [*costs, cost], unlisted)


def read_listing(path: Path, start: Cut, end: Cut) -> Iterator[str]:
    """The paths between two cuts. Raises OSError, also for a file that ends before."""
    with path.open("rb") as stream:
        stream.seek(start.bytes)
        left, rest = end.bytes - start.bytes, b""
        while left:
            block = stream.read(min(left, BLOCK))
            if not block:
                raise OSError(f"{path} has lost its end")
            left -= len(block)
            *whole, rest = (rest + block).split(b"\0")
            yield from map(os.fsdecode, whole)


@dataclass(frozen=True)
class Plan:
    """What all shards of a run agree on. Of several that plan at once, the first to publish is right for all."""

    token: str  # of this plan alone
    run: str
    settings: dict[str, Any]  # that all shards must share
    folder: str  # whose pictures are listed
    pictures: int
    listing: str  # its sha256
    cuts: list[Cut]
    unlisted: list[str]  # sub-folders whose pictures are left out, each with the reason

    @property
    def shards(self) -> int:
        return len(self.cuts) - 1


def run_folder(output: Path, run: str) -> Path:
    """Where the state of a run lies until `output` is complete."""
    return output.with_name(f"{output.name}.run-{hashlib.sha256(os.fsencode(run)).hexdigest()[:RUN_DIGITS]}")


def read_plan(folder: Path) -> Plan | None:
    """The plan of the run in `folder`, if it has one that can be seen. Raises UsageError for one that is damaged,
    OSError.
    """
    content = _content(folder)
    if content is None:
        return None
    try:
        fields = json.loads(content)
        plan = Plan(**fields | {"cuts": [Cut(*cut) for cut in fields["cuts"]]})
        with (folder / "plan" / "listing").open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() == plan.listing:
                return plan
    except (ValueError, TypeError, KeyError, FileNotFoundError):
        pass
    if _content(folder) != content:  # a merge has just removed it
        return read_plan(folder)
    raise UsageError(f"{folder / 'plan'} is damaged; delete {folder} to begin anew")


def _content(folder: Path) -> bytes | None:
    try:
        return (folder / "plan" / "plan.json").read_bytes()
    except (FileNotFoundError, NotADirectoryError, PermissionError):  # the last two: `spool` says what is wrong
        return None


def spool(output: Path) -> IO[bytes]:
    """A nameless file beside `output`; a kill leaves nothing of it, but a power cut over NFS a file .nfs*.

    Raises UsageError if nothing can be written there, OSError.
    """
    try:
        return tempfile.TemporaryFile(dir=output.parent)
    except OSError as error:
        if isinstance(error, (FileNotFoundError, NotADirectoryError, PermissionError)) or error.errno == errno.EROFS:
            raise UsageError(f"--output {output} cannot be written: {error.strerror}") from error
        raise


def publish(folder: Path, plan: Plan, listing: IO[bytes]) -> Plan:
    """Make `plan` and its listing those of the run in `folder`, unless others were faster; returns the plan that holds.

    A folder cannot be renamed onto one that holds anything. So the first wins, on NFS and where there are no hard
    links, too.
    """
    folder.mkdir(exist_ok=True)
    sync(folder.parent)
    staged = folder / f"plan-{unique()}"
    staged.mkdir()
    try:
        listing.seek(0)
        with written(staged / "listing") as stream:
            shutil.copyfileobj(listing, stream, BLOCK)
        with written(staged / "plan.json") as stream:
            stream.write(json.dumps(asdict(plan)).encode())
        sync(staged)
        with contextlib.suppress(OSError):
            staged.rename(folder / "plan")
        sync(folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    published = read_plan(folder)
    if published is None:
        raise OSError(f"{folder / 'plan'} can be neither made nor read")
    return published


def make_plan(output: Path, run: str | None, shards: int, settings: dict[str, Any], folders: list[Path]) -> Plan:
    """Plan a run over the pictures of the first of `folders` that holds any; `run` None: named by its listing.

    Returns the plan that is there if the run has one. Raises UsageError, OSError.
    """
    if run and (plan := read_plan(run_folder(output, run))):
        return plan
    with spool(output) as stream:
        for folder in folders:
            listing = write_listing(folder, stream)
            if listing.pictures or listing.unlisted:
                break
        run = run or listing.identity
        place = run_folder(output, run)
        plan = Plan(
            unique(),
            run,
            settings,
            str(folder),
            listing.pictures,
            listing.sha256,
            listing.cuts(shards),
            listing.unlisted,
        )
        return read_plan(place) or publish(place, plan, stream)


def check(theirs: dict[str, Any], ours: dict[str, Any], what: str, remedy: str) -> None:
    """Raises UsageError if settings differ."""
    different = [
        f"{key} {theirs.get(key)!r} there and {value!r} here" for key, value in ours.items() if theirs.get(key) != value
    ]
    if different:
        raise UsageError(f"{what} has other settings: {', '.join(different)}; {remedy}")

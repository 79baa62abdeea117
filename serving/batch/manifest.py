"""The manifest of a run: the pictures it scores, cut into blocks, and the settings that all its shards share.

The first process of a run lists the pictures and publishes the manifest; all others use that one, and it never changes.
A block is up to BLOCK_ROWS pictures in the order of the listing. A shard is a range of blocks.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

from common.files import sync, unique, written
from common.folders import find_pictures
from serving.batch.decoding import CHUNK

BLOCK_ROWS = 16 * CHUNK  # whole inference batches, so that these do not depend on what is scored by whom
PICTURE_COST = 32 * 1024  # bytes that take as long to decode as what a picture costs beside its bytes
RUN_DIGITS = 12  # hexadecimal digits of the hash that names a run's folder
MANIFEST, LISTING = "manifest.json", "listing"


class UsageError(Exception):
    """A call that cannot be carried out as given; the message says what to change."""


@dataclass(frozen=True)
class Manifest:
    """What all shards of a run agree on."""

    token: str  # of this manifest alone
    run: str
    settings: dict[str, Any]
    folder: str  # whose pictures are listed
    pictures: int
    block_rows: int
    offsets: list[int]  # in bytes, where each block begins in the listing, and the listing's end
    cuts: list[int]  # the first block of each shard, and the number of blocks
    listing_sha256: str
    unlisted: list[str]  # sub-folders whose pictures are left out, each with the reason

    @property
    def shards(self) -> int:
        return len(self.cuts) - 1

    def blocks(self, shard: int | None = None) -> range:
        """The blocks of a shard, or of the run."""
        return range(self.cuts[-1]) if shard is None else range(self.cuts[shard], self.cuts[shard + 1])

    def shard(self, block: int) -> int:
        return bisect_right(self.cuts, block) - 1

    def rows(self, block: int) -> int:
        return min(self.block_rows, self.pictures - block * self.block_rows)

    def pictures_in(self, blocks: Iterable[int]) -> int:
        return sum(map(self.rows, blocks))


class Listing(NamedTuple):
    """What `write_listing` learned."""

    identity: str  # changes with the name, size or time of any picture
    sha256: str
    pictures: int
    offsets: list[int]
    costs: list[int]  # of all pictures before each block, and of all
    unlisted: list[str]

    def cuts(self, shards: int) -> list[int]:
        """Where each shard begins, and the end, so that all cost about the same."""
        targets = (self.costs[-1] * shard / shards for shard in range(shards))
        return [*(bisect_left(self.costs, target) for target in targets), len(self.costs) - 1]


def write_listing(folder: Path, stream: IO[bytes]) -> Listing:
    """Write the path of every picture below `folder`, with a NUL after each. Raises OSError."""
    identity, content = hashlib.sha256(), hashlib.sha256()
    pictures, offsets, costs = 0, [0], [0]
    unlisted: list[str] = []
    found = find_pictures(folder, unlisted)
    while paths := list(islice(found, BLOCK_ROWS)):
        lines, cost = [], costs[-1]
        for path in paths:
            try:
                status = os.stat(path)  # noqa: PTH116  a Path a picture is slow
                size, changed = status.st_size, status.st_mtime_ns
            except OSError:
                size, changed = 0, 0
            lines.append(os.fsencode(path) + b"\0")
            identity.update(b"%b%d %d\0" % (lines[-1], size, changed))
            cost += size + PICTURE_COST
        block = b"".join(lines)
        stream.write(block)
        content.update(block)
        pictures += len(paths)
        offsets.append(offsets[-1] + len(block))
        costs.append(cost)
    return Listing(identity.hexdigest(), content.hexdigest(), pictures, offsets, costs, unlisted)


def run_folder(output: Path, run: str) -> Path:
    """Where the state of a run lies until `output` is complete."""
    return output.with_name(f"{output.name}.run-{hashlib.sha256(os.fsencode(run)).hexdigest()[:RUN_DIGITS]}")


def store_folder(run: Path) -> Path:
    """The folder of the manifest and the blocks in a run's folder. It appears, and is removed, by a rename."""
    return run / "store"


def unfinished(output: Path) -> list[Path]:
    """The folders of all runs that were to write `output`, as far as they can be seen. Raises OSError."""
    named = (path for path in output.parent.iterdir() if path.name.startswith(f"{output.name}.run-"))
    return sorted(path for path in named if os.access(store_folder(path), os.F_OK))


def remove_run(run: Path) -> None:
    """Remove a run's folder. Its store vanishes first and at once: nobody sees a part of it."""
    with contextlib.suppress(OSError):  # another process was faster
        store_folder(run).rename(run / unique())
    shutil.rmtree(run, ignore_errors=True)


def read_manifest(run: Path) -> Manifest | None:
    """The manifest in a run's folder, None if there is none. Raises UsageError if it is damaged, OSError."""
    content = _content(run)
    if content is None:
        return None
    with contextlib.suppress(ValueError, TypeError, FileNotFoundError):
        manifest = Manifest(**json.loads(content))
        with (store_folder(run) / LISTING).open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() == manifest.listing_sha256:
                return manifest
    if _content(run) != content:  # a merge has just removed it
        return read_manifest(run)
    raise UsageError(f"the manifest in {store_folder(run)} is damaged; delete {run} to begin anew")


def _content(run: Path) -> bytes | None:
    try:
        return (store_folder(run) / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError, PermissionError):  # `_spool` says what is wrong
        return None


def read_listing(run: Path, manifest: Manifest, block: int) -> Iterator[str]:
    """The paths of a block's pictures. Raises OSError, also for a listing that ends before."""
    start, end = manifest.offsets[block : block + 2]
    with (store_folder(run) / LISTING).open("rb") as stream:
        stream.seek(start)
        content = stream.read(end - start)
    if len(content) < end - start:
        raise OSError(f"{store_folder(run) / LISTING} has lost its end")
    yield from map(os.fsdecode, content.split(b"\0")[:-1])


def make_manifest(
    output: Path, run: str | None, shards: int, settings: dict[str, Any], folders: list[Path]
) -> Manifest:
    """The manifest of a run; made if there is none, of the first of `folders` that holds a picture.

    A `run` of None is named by its pictures. Raises UsageError if nothing can be written beside `output` or the
    manifest is damaged, OSError.
    """
    if run and (manifest := read_manifest(run_folder(output, run))):
        return manifest
    with _spool(output) as stream:
        for folder in folders:
            listing = write_listing(folder, stream)
            if listing.pictures or listing.unlisted:
                break
        run = run or listing.identity
        manifest = Manifest(
            token=unique(),
            run=run,
            settings=settings,
            folder=str(folder),
            pictures=listing.pictures,
            block_rows=BLOCK_ROWS,
            offsets=listing.offsets,
            cuts=listing.cuts(shards),
            listing_sha256=listing.sha256,
            unlisted=listing.unlisted,
        )
        place = run_folder(output, run)
        return read_manifest(place) or _publish(place, manifest, stream)


def _spool(output: Path) -> IO[bytes]:
    """A nameless file beside `output`; a kill leaves nothing of it, but a power cut over NFS a file .nfs*."""
    try:
        return tempfile.TemporaryFile(dir=output.parent)
    except OSError as error:
        if isinstance(error, (FileNotFoundError, NotADirectoryError, PermissionError)) or error.errno == errno.EROFS:
            raise UsageError(f"--output {output} cannot be written: {error.strerror}") from error
        raise


def _publish(run: Path, manifest: Manifest, listing: IO[bytes]) -> Manifest:
    """Publish the manifest and its listing, unless another process was faster; returns the manifest that holds.

    A folder cannot be renamed onto one that holds anything. So the first wins, also on NFS and without hard links.
    """
    staged = run / unique()
    staged.mkdir(parents=True)
    try:
        listing.seek(0)
        with written(staged / LISTING) as stream:
            shutil.copyfileobj(listing, stream)
        with written(staged / MANIFEST) as stream:
            stream.write(json.dumps(asdict(manifest)).encode())
        sync(staged)
        with contextlib.suppress(OSError):
            staged.rename(store_folder(run))
        sync(run)
        sync(run.parent)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    published = read_manifest(run)
    if published is None:
        raise FileNotFoundError(f"{store_folder(run)} can be neither made nor read")
    return published


def check(theirs: dict[str, Any], ours: dict[str, Any], what: str, remedy: str) -> None:
    """Raises UsageError if settings differ."""
    different = [
        f"{key} {theirs.get(key)!r} there and {value!r} here" for key, value in ours.items() if theirs.get(key) != value
    ]
    if different:
        raise UsageError(f"{what} has other settings: {', '.join(different)}; {remedy}")

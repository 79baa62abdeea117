"""The blocks of a run: immutable files of rows.

Until FILE is complete, a folder FILE.run-HEX/store lies beside it. HEX is a hash of the run's name.

    manifest.json, listing     see manifest.py
    block-NNNNNN               the rows of one block, and their checksum
    part-HOST-PID-RANDOM       what one process is writing; it gets its name when it is whole

A block that is there is whole, and all processes write the same rows into it. So any number of processes, on several
machines, may work on one run and even on one block, and each may be killed at any moment.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from common.files import move, unique, written
from serving.batch.manifest import Manifest, read_listing, run_folder, store_folder


class DamagedBlocks(Exception):
    """Blocks whose bytes are not those that were written."""

    def __init__(self, blocks: list[int]) -> None:
        super().__init__(f"{len(blocks)} blocks are damaged, the first is {block_name(blocks[0])}")
        self.blocks = blocks


class Block(NamedTuple):
    rows: bytes
    counts: dict[str, int]  # pictures by status; not every format has a line for each picture
    seconds: float  # it took to score


def block_name(block: int) -> str:
    return f"block-{block:06d}"


class Store:
    """The blocks of one run."""

    def __init__(self, output: Path, manifest: Manifest) -> None:
        self.run_folder = run_folder(output, manifest.run)
        self.folder = store_folder(self.run_folder)
        self.manifest = manifest

    def paths(self, blocks: Iterable[int]) -> Iterator[str]:
        """The pictures of some blocks. Raises OSError."""
        for block in blocks:
            yield from read_listing(self.run_folder, self.manifest, block)

    def missing(self, blocks: Iterable[int]) -> list[int]:
        """Those of `blocks` that are not there. Raises OSError.

        An NFS client trusts its copy of a folder for up to a minute, but looks again after a change of its own: hence
        the file. So of two processes that write the last two blocks at once, at least one sees both.
        """
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix="part-"):
            there = self._names()
        return [block for block in blocks if block_name(block) not in there]

    def pictures_kept(self, blocks: Iterable[int]) -> int:
        """How many pictures of `blocks` are kept, as far as can be seen."""
        try:
            there = self._names()
        except OSError:
            return 0
        return self.manifest.pictures_in(block for block in blocks if block_name(block) in there)

    def _names(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}

    def write(self, block: int, content: Block) -> None:
        """Keep a block, in place of a damaged one. Raises OSError.

        A damaged block is not deleted before: a process that is killed in between would leave a block missing, which
        its shard, complete as it was, scores no more.
        """
        facts = {"manifest": self.manifest.token, "block": block, "counts": content.counts, "seconds": content.seconds}
        body = json.dumps(facts).encode() + b"\n" + content.rows
        self.put(self.folder / block_name(block), hashlib.sha256(body).hexdigest().encode() + b"\n" + body)

    def read(self, block: int) -> Block | None:
        """A block; None if it is damaged, or was written for another manifest. Raises OSError."""
        checksum, _, body = (self.folder / block_name(block)).read_bytes().partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != checksum:
            return None
        line, _, rows = body.partition(b"\n")
        facts = json.loads(line)
        if (facts["manifest"], facts["block"]) != (self.manifest.token, block):
            return None
        return Block(rows, facts["counts"], facts["seconds"])

    def concatenate(self, header: bytes) -> tuple[Path, str, Counter[str], float]:
        """Write `header` and the rows of all blocks to a file in the store.

        Returns the file, its sha256, how many pictures have each status, and the sum of the seconds. Raises
        DamagedBlocks, OSError.
        """
        part, digest = self.part(), hashlib.sha256(header)
        counts: Counter[str] = Counter()
        seconds, damaged = 0.0, []
        with written(part) as stream:
            stream.write(header)
            for block in self.manifest.blocks():
                content = self.read(block)
                if content is None:
                    damaged.append(block)
                    continue
                stream.write(content.rows)
                digest.update(content.rows)
                counts.update(content.counts)
                seconds += content.seconds
            if damaged:
                raise DamagedBlocks(damaged)
        return part, digest.hexdigest(), counts, seconds

    def part(self) -> Path:
        """A new name for a file that is being written."""
        return self.folder / f"part-{unique()}"

    def put(self, path: Path, data: bytes) -> None:
        """Write `path` so that it appears whole and lasts, or not at all. Raises OSError."""
        part = self.part()
        with written(part) as stream:
            stream.write(data)
        move(part, path)

"""Paths of pictures -> rows of the result."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from handlers.recognizer import Recognizer
from serving.batch.decoding import CHUNK, Chunk, decode_all
from serving.batch.tables import Row, answered

CHUNKS_AHEAD = 4  # in decoding or waiting for the network, for each process

Scored: TypeAlias = tuple[Chunk, npt.NDArray[np.float32]]  # with class probabilities (N, C) of its N good pictures


def score(recognizer: Recognizer, chunk: Chunk) -> Scored:
    """Run the network over a chunk's good pictures, in a batch that is padded to CHUNK."""
    good = len(chunk.images)
    batch = np.zeros((CHUNK, recognizer.input_size, recognizer.input_size), np.uint8)
    batch[:good] = chunk.images
    return chunk, recognizer.probabilities(batch)[:good]


def score_all(recognizer: Recognizer, chunks: Iterable[Chunk], threads: int) -> Iterator[Scored]:
    """Score chunks in order, each by one thread: on all cores that is faster than all threads on one chunk after
    another.
    """
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting: deque[Future[Scored]] = deque()
        for chunk in chunks:
            waiting.append(pool.submit(score, recognizer, chunk))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@dataclass(frozen=True)
class Scorer:
    """What turns paths into rows; `pool` holds `processes` decoders, and as many threads score."""

    recognizer: Recognizer
    pool: ProcessPoolExecutor
    processes: int
    alphabet: str
    min_confidence: float

    def rows(self, paths: Iterable[str], folder: Path) -> Iterator[list[Row]]:
        """One row for each of `paths`, which lie below `folder`, in order, in lists of up to CHUNK. Raises what
        `decode_all` does.
        """
        fold = self.recognizer.fold(self.alphabet)
        decoded = decode_all(paths, folder, self.recognizer.input_size, self.pool, CHUNKS_AHEAD * self.processes)
        for chunk, probabilities in score_all(self.recognizer, decoded, self.processes):
            answers = iter(fold(probabilities))
            yield [
                Row(path, error=error) if error else self._row(path, fold.characters, next(answers))
                for path, error in zip(chunk.paths, chunk.errors, strict=True)
            ]

    def _row(self, path: str, characters: Sequence[str], folded: npt.NDArray[np.float64]) -> Row:
        best = int(folded.argmax())
        return answered(path, characters[best], float(folded[best]), self.min_confidence)

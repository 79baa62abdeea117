"""Picture files -> prepared images, through the very preprocessing that serves; made once for the same files and code,
and kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import NamedTuple, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from common.files import replaced
from handlers.pictures.decoding import InvalidImage
from handlers.pictures.pipeline import read_image
from training.data.cache import PREPROCESSING, cache_folder, source_code
from training.data.folders import pictures_below

log = logging.getLogger(__name__)

CHUNK = 1000  # pictures a task; fewer are decoded without other processes
UNREADABLE = "unreadable"

Chunk: TypeAlias = tuple[npt.NDArray[np.uint8], npt.NDArray[np.str_], npt.NDArray[np.str_]]


class Decoded(NamedTuple):
    """N files: images uint8 (N, S, S), black where refused; codes (N,), "" for a good one; writers (N,), numbers, -1
    where not known.
    """

    images: npt.NDArray[np.uint8]
    codes: npt.NDArray[np.str_]
    writers: npt.NDArray[np.int64]


def decode(folder: Path, names: Sequence[str], size: int, by_write: Path | None = None) -> Decoded:
    """Read the files `names` below `folder` and prepare them; from the cache if these very files were read by this very
    code.

    `by_write`, where there is one, is NIST's folder of that name, which tells the writers.
    """
    path = cache_folder() / f"pictures-{_key(folder, names, size, by_write)}.npz"
    if path.is_file():
        with np.load(path) as kept:
            return Decoded(**kept)
    log.info("preparing %d pictures of %s for %s, once", len(names), folder, path)
    images, codes, digests = _decode_all(folder, names, size)
    known = writers_by_digest(by_write) if by_write else {}
    numbers = {writer: number for number, writer in enumerate(sorted(set(known.values())))}
    writers = [numbers[known[digest]] if digest in known else -1 for digest in digests.tolist()]
    made = Decoded(images, codes, np.array(writers, np.int64))
    if UNREADABLE not in codes:  # that may be better the next time
        with replaced(path) as stream:
            np.savez(stream, **made._asdict())
    return made


def _key(folder: Path, names: Sequence[str], size: int, by_write: Path | None) -> str:
    digest = hashlib.sha256(f"{folder.resolve()} {size} {by_write and by_write.stat().st_mtime_ns}".encode())
    for name in names:
        with contextlib.suppress(OSError):  # refused later, with its name
            status = (folder / name).stat()
            digest.update(f"\n{name} {status.st_size} {status.st_mtime_ns}".encode())
    digest.update(source_code(PREPROCESSING))
    return digest.hexdigest()[:16]


def _decode_all(folder: Path, names: Sequence[str], size: int) -> Chunk:
    if len(names) <= CHUNK:
        return _decode_chunk(folder, names, size)
    chunks = [names[start : start + CHUNK] for start in range(0, len(names), CHUNK)]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as workers:
        tasks = workers.map(_decode_chunk, repeat(folder), chunks, repeat(size))
        decoded = list(tqdm(tasks, total=len(chunks), unit="chunk", mininterval=5))
    images, codes, digests = map(np.concatenate, zip(*decoded, strict=True))
    return images, codes, digests


def _decode_chunk(folder: Path, names: Sequence[str], size: int) -> Chunk:
    """Images, codes, and digests of the files' bytes."""
    if multiprocessing.parent_process() is not None:
        cv2.setNumThreads(1)
    images = np.zeros((len(names), size, size), np.uint8)
    codes, digests = [""] * len(names), [""] * len(names)
    for index, name in enumerate(names):
        try:
            data = (folder / name).read_bytes()
            digests[index] = digest_of(data)
            images[index] = read_image(data, size)
        except InvalidImage as error:
            codes[index] = error.code
        except OSError:
            codes[index] = UNREADABLE
    return images, np.array(codes, np.str_), np.array(digests, np.str_)


def digest_of(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def writers_by_digest(folder: Path) -> dict[str, str]:
    """The writer, by the digest of a file's bytes, of every picture of NIST's by_write:
    hsf_0/f0000_14/c0000_14/c0000_14_00000.png.

    by_write names no class and by_class no writer, but both hold the same files (as LEAF, Caldas et al. 2018, joins
    them).
    """
    return {
        digest_of((folder / name).read_bytes()): name.split("/")[1]
        for name in pictures_below(folder)
        if name.count("/") > 1
    }

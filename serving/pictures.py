"""The pictures of a directory: found in order, read and prepared in processes, whatever is wrong with one kept with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import stat
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from handlers.preprocessing import InvalidImage, read_image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
CHUNK = 64  # pictures that a decoding process takes at a time
CHUNKS_AHEAD = 4  # decoded or in decoding, for each process: bounds the memory
MAX_FILE_BYTES = 256 * 1024 * 1024


class Decoded(NamedTuple):
    """One picture, prepared uint8 (S, S), or why not, as "code: message"."""

    image: npt.NDArray[np.uint8] | None
    error: str = ""


def find_pictures(folder: Path) -> list[str]:
    """Every file below `folder` with a picture's suffix, as `folder` joined with its relative path, in code-point order.

    Linked folders are not followed, so a circle of links ends. Raises OSError for a folder that cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise error

    found = []
    for parent, _, names in os.walk(folder, onerror=refuse):
        found += [os.path.join(parent, name) for name in names if name.lower().endswith(SUFFIXES)]
    return sorted(path.replace(os.sep, "/") for path in found)


def decode_file(path: str, size: int) -> Decoded:
    """Read and prepare one file; whatever is wrong with it becomes its error."""
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            return Decoded(None, "unreadable: not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            return Decoded(None, f"image_too_large: a file of {status.st_size} bytes; at most {MAX_FILE_BYTES} are read")
        return Decoded(read_image(Path(path).read_bytes(), size))
    except InvalidImage as error:
        return Decoded(None, f"{error.code}: {error}")
    except OSError as error:
        return Decoded(None, f"unreadable: {error.strerror or error}")
    except Exception as error:  # a fault of ours costs this row only
        return Decoded(None, f"internal_error: {type(error).__name__}: {error}")


def decode_chunk(paths: Sequence[str], size: int) -> list[Decoded]:
    return [decode_file(path, size) for path in paths]


def _start_decoder() -> None:
    """Ctrl-C is for the main process, which ends its decoders itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)


def decode_all(paths: Sequence[str], size: int, processes: int) -> Iterator[list[Decoded]]:
    """Decode `paths` in order, a chunk at a time; in this process if a single chunk holds them all."""
    chunks = [paths[i : i + CHUNK] for i in range(0, len(paths), CHUNK)]
    if len(chunks) <= 1 or processes <= 1:
        yield from (decode_chunk(chunk, size) for chunk in chunks)
        return
    context = multiprocessing.get_context("forkserver")  # torch has threads by now, which a plain fork would break
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_start_decoder) as pool:
        ahead: deque[Future[list[Decoded]]] = deque()
        try:
            for chunk in chunks:
                ahead.append(pool.submit(decode_chunk, chunk, size))
                if len(ahead) >= CHUNKS_AHEAD * processes:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

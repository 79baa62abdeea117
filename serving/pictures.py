"""The pictures of a directory: found in order, read and prepared in processes, whatever is wrong with one kept with it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from handlers.picture import Grey, InvalidImage
from handlers.preprocessing import read_image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
CHUNK = 64  # pictures that a decoding process takes at a time, and the network in one pass
CHUNK_TIMEOUT_S = 600.0  # for a chunk to be decoded; beyond it something is stuck
PARENT_CHECK_S = 1.0
LOST_AND_FOUND = "lost+found"  # at the root of an ext4 volume, for root alone to list
MAX_FILE_BYTES = 256 * 1024 * 1024


class Chunk(NamedTuple):
    """Some pictures, decoded: `errors` holds "" or "code: message" for each, `images` the N good ones as uint8 (N, S, S)."""

    images: npt.NDArray[np.uint8]
    errors: list[str]


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_pictures(folder: Path) -> list[str]:
    """Every file below `folder` with a picture's suffix, as `folder` joined with its relative path, in code-point order.

    Linked folders are not followed, so a circle of links ends. Raises OSError for a folder that cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise error

    found = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        if parent == str(folder) and LOST_AND_FOUND in folders:
            folders.remove(LOST_AND_FOUND)
        found += [os.path.join(parent, name) for name in names if name.lower().endswith(SUFFIXES)]
    return sorted(path.replace(os.sep, "/") for path in found)


def decode_file(path: str, size: int) -> Grey | str:
    """Read and prepare one file; whatever is wrong with it is returned as "code: message"."""
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            return "unreadable: not a regular file"
        if status.st_size > MAX_FILE_BYTES:
            return f"image_too_large: a file of {status.st_size} bytes; at most {MAX_FILE_BYTES} are read"
        return read_image(Path(path).read_bytes(), size)
    except InvalidImage as error:
        return f"{error.code}: {error}"
    except OSError as error:
        return f"unreadable: {error.strerror or error}"
    except Exception as error:  # a fault of ours costs this row only
        return f"internal_error: {type(error).__name__}: {error}"


def decode_chunk(paths: Sequence[str], size: int) -> Chunk:
    results = [decode_file(path, size) for path in paths]
    images = [result for result in results if not isinstance(result, str)]
    stacked = np.stack(images) if images else np.empty((0, size, size), np.uint8)
    return Chunk(stacked, [result if isinstance(result, str) else "" for result in results])


@contextlib.contextmanager
def decoders(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that decode; start them before a model is loaded.

    They are forked, and so there at once, where a fresh process would first import torch. A fork has no threads but its
    own; so OpenCV's are ended here before, and the decoders use no other library that has any.
    """
    cv2.setNumThreads(1)
    kind = "fork" if sys.platform == "linux" else "spawn"
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context(kind), _start_decoder, (os.getpid(),))
    try:
        pool.submit(os.getpid)  # forks them all
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_decoder(parent: int) -> None:
    """Leave signals to the main process, which ends its decoders itself; end when it was killed and could not."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if cv2.getNumThreads() != 1:  # it is no fork
        cv2.setNumThreads(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def decode_all(paths: Sequence[str], size: int, pool: ProcessPoolExecutor, ahead: int) -> Iterator[Chunk]:
    """Decode `paths` in order, a chunk at a time, with `ahead` chunks in the pool, which bounds the memory.

    Raises TimeoutError if a chunk is not decoded within CHUNK_TIMEOUT_S, BrokenProcessPool if a decoder was killed.
    """
    chunks = (paths[i : i + CHUNK] for i in range(0, len(paths), CHUNK))
    waiting: deque[Future[Chunk]] = deque()
    for chunk in chunks:
        waiting.append(pool.submit(decode_chunk, chunk, size))
        if len(waiting) >= ahead:
            yield waiting.popleft().result(CHUNK_TIMEOUT_S)
    while waiting:
        yield waiting.popleft().result(CHUNK_TIMEOUT_S)

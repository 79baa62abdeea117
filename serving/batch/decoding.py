"""The pictures of a directory: found in order, read and prepared in processes, whatever is wrong with one kept with
it.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from common.folders import holds_anything
from handlers.pictures.decoding import Grey, InvalidImage
from handlers.pictures.pipeline import read_image

log = logging.getLogger(__name__)

CHUNK = 64  # pictures that a decoding process takes at a time, and the network in one pass
CHUNK_TIMEOUT_S = 600.0  # for a chunk to be decoded; beyond it something is stuck
VOLUME_TIMEOUT_S = 60.0  # for a folder that went away to come back
VOLUME_POLL_S = 1.0
PARENT_CHECK_S = 1.0
MAX_FILE_BYTES = 256 * 1024 * 1024

Result = TypeVar("Result")


class VolumeAway(OSError):
    """The folder of the pictures cannot be listed or is empty, as a mount point is without its volume."""


class Stuck(Exception):
    """Nothing came from the decoders within CHUNK_TIMEOUT_S."""


class Chunk(NamedTuple):
    """Some pictures, decoded: `errors` holds "" or "code: message" for each, `images` the N good ones as uint8 (N, S,
    S).
    """

    paths: Sequence[str]
    images: npt.NDArray[np.uint8]
    errors: list[str]


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_file(path: str, folder: str, again: bool = True) -> bytes:
    """A picture file's content. Raises InvalidImage if it is too large, VolumeAway, or OSError for what is wrong with
    this file.
    """
    try:
        status = os.stat(path)  # noqa: PTH116  a Path a picture is slow
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise InvalidImage(
                "image_too_large", f"a file of {status.st_size} bytes; at most {MAX_FILE_BYTES} are read"
            )
        return Path(path).read_bytes()
    except OSError as error:
        if not holds_anything(folder):
            raise VolumeAway(f"{folder} is empty or cannot be listed") from error
        if again:  # the volume may have come back between the failed read and the look at its folder
            return read_file(path, folder, again=False)
        raise


def decode_file(path: str, size: int, folder: str) -> Grey | str:
    """Read and prepare one file; whatever is wrong with it is returned as "code: message". Raises VolumeAway."""
    try:
        return read_image(read_file(path, folder), size)
    except VolumeAway:
        raise
    except InvalidImage as error:
        return f"{error.code}: {error}"
    except OSError as error:
        return f"unreadable: {error.strerror or error}"
    except Exception as error:  # a fault of ours costs this row only
        return f"internal_error: {type(error).__name__}: {error}"


def decode_chunk(paths: Sequence[str], size: int, folder: str) -> Chunk:
    results = [decode_file(path, size, folder) for path in paths]
    images = [result for result in results if not isinstance(result, str)]
    stacked = np.stack(images) if images else np.empty((0, size, size), np.uint8)
    return Chunk(paths, stacked, [result if isinstance(result, str) else "" for result in results])


@contextlib.contextmanager
def decoders(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that decode; start them before a model is loaded.

    They are forked, and so there at once, where a fresh process would first import torch. A fork has no threads but its
    own; so OpenCV's are ended here before, and the decoders use no other library that has any. After an exception they
    are killed and not waited for: one of them may hang in a read that nothing ends.
    """
    cv2.setNumThreads(1)
    kind = "fork" if sys.platform == "linux" else "spawn"
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context(kind), _start_decoder, (os.getpid(),))
    try:
        pool.submit(os.getpid)  # forks them all
        yield pool
    except BaseException:
        for child in multiprocessing.active_children():
            child.kill()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


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


def decode_all(paths: Iterable[str], folder: Path, size: int, pool: ProcessPoolExecutor, ahead: int) -> Iterator[Chunk]:
    """Decode `paths`, which lie below `folder`, in order, a chunk at a time, with `ahead` chunks in the pool, which
    bounds the memory.

    While the folder is away, as when its volume is, this waits for VOLUME_TIMEOUT_S and then reads again what it could
    not. Raises VolumeAway if it does not come back, Stuck if the decoders hang, BrokenProcessPool if one was killed.
    """

    def submit(chunk: Sequence[str]) -> Future[Chunk]:
        return pool.submit(decode_chunk, chunk, size, str(folder))

    def result(chunk: Sequence[str], future: Future[Chunk]) -> Chunk:
        while True:
            try:
                return in_time(future)
            except VolumeAway:
                wait_for(str(folder), pool)
                future = submit(chunk)

    source = iter(paths)
    waiting: deque[tuple[Sequence[str], Future[Chunk]]] = deque()
    while chunk := list(islice(source, CHUNK)):
        waiting.append((chunk, submit(chunk)))
        if len(waiting) >= ahead:
            yield result(*waiting.popleft())
    while waiting:
        yield result(*waiting.popleft())


def in_time(future: Future[Result]) -> Result:
    """What a decoder answers. Raises Stuck."""
    try:
        return future.result(CHUNK_TIMEOUT_S)
    except TimeoutError as error:
        raise Stuck(f"no picture was decoded for {CHUNK_TIMEOUT_S:.0f} s") from error


def wait_for(folder: str, pool: ProcessPoolExecutor) -> None:
    """Wait until the folder holds anything; a decoder looks, since a look at a dead volume may hang. Raises VolumeAway,
    Stuck.
    """
    if in_time(pool.submit(holds_anything, folder)):
        return
    log.warning("%s is empty or cannot be listed: waiting up to %.0f s for it to come back", folder, VOLUME_TIMEOUT_S)
    deadline = time.monotonic() + VOLUME_TIMEOUT_S
    while not in_time(pool.submit(holds_anything, folder)):
        if time.monotonic() > deadline:
            raise VolumeAway(f"{folder} did not come back within {VOLUME_TIMEOUT_S:.0f} s")
        time.sleep(VOLUME_POLL_S)
    log.warning("%s is back", folder)

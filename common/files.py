"""Files that appear under their name whole and for good, or not at all, on local disks and over NFS."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO


def unique() -> str:
    """A name that tells whose it is; the random part alone sets it apart, since a pod that was started again has the
    same host and process.
    """
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(8)}"


@contextlib.contextmanager
def written(path: Path) -> Iterator[IO[bytes]]:
    """A new file that lies on the disk when the context ends, and is removed again if that failed. Raises OSError."""
    try:
        with path.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def move(part: Path, path: Path) -> None:
    """Give a written file its name, in place of any other of that name."""
    part.replace(path)
    sync(path.parent)


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[IO[bytes]]:
    """A stream whose content becomes the file `path` when the context ends; a reader finds the old file or the new one.

    The folder is made if it is not there. If the context fails, the old file stays. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{unique()}")
    with written(part) as stream:
        yield stream
    move(part, path)


def sync(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    with contextlib.suppress(OSError):  # some filesystems cannot, and need not
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

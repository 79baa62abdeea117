"""The pictures of a folder, found in order, alike for training, evaluation, the batch program and the client."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)

SUFFIXES = (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".tif", ".tiff", ".webp")
LOST_AND_FOUND = "lost+found/"  # at the root of an ext4 volume, for root alone to list


def find_pictures(folder: Path, unlisted: list[str] | None = None) -> Iterator[str]:
    """Every file below `folder` with a picture's suffix, as `folder` joined with its relative path.

    They come in code-point order. Hidden files and folders, whose name begins with a dot, are passed over: macOS writes
    such a file beside each picture. Linked folders are not followed, so a circle of links ends. Memory holds the names
    of the folders on the way to the current one, not the whole tree. A sub-folder that cannot be listed is passed over,
    and noted in `unlisted` with the reason; one that was removed meanwhile is passed over with a line of the log.
    Raises OSError for `folder` itself.
    """
    root = folder.as_posix().rstrip("/") + "/"
    waiting = [root]  # the next one last; folders end with "/", which also puts "box.png" before "box/1.png"
    while waiting:
        path = waiting.pop()
        if not path.endswith("/"):
            yield path
            continue
        try:
            names = _entries(path)
        except (FileNotFoundError, NotADirectoryError):
            if path == root or not holds_anything(root):
                raise
            log.warning("%s was removed while the pictures were listed", path)
            continue
        except OSError as error:
            if path == root or not holds_anything(root):
                raise
            if unlisted is not None:
                unlisted.append(f"{path}: {error.strerror or error}")
            continue
        if path == root and LOST_AND_FOUND in names:
            names.remove(LOST_AND_FOUND)
        names.sort(reverse=True)
        waiting += [path + name for name in names]


def _entries(folder: str) -> list[str]:
    """The names of a folder's pictures, and of its folders with "/" behind them."""
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                is_folder = entry.is_dir()
            except OSError:  # a link to itself
                is_folder = False
            if is_folder and not entry.is_symlink():
                names.append(entry.name + "/")
            elif not is_folder and entry.name.lower().endswith(SUFFIXES):
                names.append(entry.name)
    return names


def holds_anything(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except OSError:
        return False

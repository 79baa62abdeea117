"""Pictures found in folders, and the class that each one's place or name gives it; nothing is opened here.

NIST Special Database 19 (second edition, 2016): by_class/4a/hsf_0/hsf_0_00000.png, where 4a is the ASCII code of the
class, J, and hsf_0 to hsf_7 are the partitions, each of writers of its own. NIST gives hsf_4 to report on; train_4a
repeats the others.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from common.folders import find_pictures
from handlers.alphabets import BY_CLASS
from training.data.images import DataError

SD19_TEST = "hsf_4"
UNKNOWN_CLASS = "unknown_class"
HEXADECIMAL = 16
CHARACTERS = frozenset(BY_CLASS)  # what the alphabets of handlers.alphabets are made of


class Found(NamedTuple):
    """A picture: `name` is its path below the folder, "/" between the parts; `part` is "train" or "test", or "" where
    nothing tells.
    """

    name: str
    label: str
    part: str


class Refusal(NamedTuple):
    """A picture that is not used, and the code of the reason."""

    name: str
    code: str


class Listing(NamedTuple):
    """What a folder holds; `repeated` counts files passed over because others are the same pictures."""

    found: list[Found]
    refused: list[Refusal]
    repeated: int = 0


def list_sd19(folder: Path) -> Listing:
    """The pictures of `folder`, a by_class. Where a class has partitions, its train_4a is passed over; pictures beside
    all of them have no part.
    """
    names = pictures_below(folder)
    divided = {
        code
        for code, partition in map(class_and_partition, names)
        if partition.startswith("hsf_") and partition != SD19_TEST
    }
    found, refused, repeated = [], [], 0
    for name in names:
        code, partition = class_and_partition(name)
        label = label_of_code(code)
        if not label:
            refused.append(Refusal(name, UNKNOWN_CLASS))
        elif partition.startswith("train_") and code in divided:
            repeated += 1
        else:
            found.append(Found(name, label, "test" if partition == SD19_TEST else "train" if partition else ""))
    return Listing(found, refused, repeated)


def class_and_partition(name: str) -> tuple[str, str]:
    """The first two folders of a path; "" for one that is missing."""
    first, second, *_ = [*name.split("/")[:-1], "", ""]
    return first, second


def label_of_code(name: str) -> str:
    """The digit or letter whose ASCII code `name` is in hexadecimal, such as "4a"; "" if it is none."""
    try:
        character = chr(int(name, HEXADECIMAL))
    except (ValueError, OverflowError):
        return ""
    return character if character in CHARACTERS and len(name) == 2 else ""


def list_folders(folder: Path) -> Listing:
    """Folder name = class: [train|test]/A/.../picture.png."""
    return list_labelled(folder, lambda name: name.split("/")[0] if "/" in name else "")


def list_names(folder: Path) -> Listing:
    """First character of the file's name = class, if no letter or digit follows it: [train|test]/.../7_x.png, 7.png,
    not 17.png.
    """

    return list_labelled(folder, label_of_name)


def label_of_name(name: str) -> str:
    """The first character of a file's name if it stands alone: "7" of box/7_x.png and 7.png; "" of 17.png."""
    stem = name.rpartition("/")[2].rpartition(".")[0]
    return stem[:1] if stem[:1].isalnum() and not stem[1:2].isalnum() else ""


def list_labelled(folder: Path, label_of: Callable[[str], str]) -> Listing:
    """Pictures by the label that their path, below `folder` or its folders train and test, gives them."""
    parts = [part for part in ("train", "test") if (folder / part).is_dir()]
    found, refused = [], []
    for part in parts or [""]:
        for name in pictures_below(folder / part):
            path, label = f"{part}/{name}" if part else name, label_of(name)
            if label in CHARACTERS:
                found.append(Found(path, label, part))
            else:
                refused.append(Refusal(path, UNKNOWN_CLASS))
    return Listing(found, refused)


def pictures_below(folder: Path) -> list[str]:
    """The paths of all pictures, below `folder`, in order.

    Raises DataError if there is no such folder or one in it cannot be listed, OSError if it cannot be listed itself.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder}; data.path or EMNIST_ROOT must be the folder that holds the pictures")
    unlisted: list[str] = []
    found = [os.path.relpath(path, folder) for path in find_pictures(folder, unlisted)]
    if unlisted:
        raise DataError(f"a folder cannot be listed: {unlisted[0]}")
    return found

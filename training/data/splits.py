"""What a run trains on, chooses by and reports, from whichever source its settings name.

A source with a test part of its own keeps it; of another a seeded share is held out, by whole writers where these are
known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from handlers.alphabets import BY_CLASS, DIGITS, LOWER, UPPER
from handlers.pictures.framing import SIZE
from training.data.cache import cache_folder
from training.data.folders import Listing, Refusal, list_folders, list_names, list_sd19
from training.data.idx import download, load_csv, load_emnist, load_mnist
from training.data.images import DataError, Images, sample_of_each_class, sample_of_writers, without
from training.data.prepared import decode
from training.settings import DataSettings

# NIST's data types; no set of characters, for each repeats one.
CLASS_SETS = {
    "digits": DIGITS,
    "cap_letters": UPPER,
    "low_letters": LOWER,
}
LISTS: dict[str, Callable[[Path], Listing]] = {"sd19": list_sd19, "folders": list_folders, "names": list_names}
DOWNLOADS = {
    "emnist": ("EMNIST", "EMNIST/raw/emnist-*-images-idx3-ubyte*"),
    "mnist": ("MNIST", "MNIST/raw/train-images-idx3-ubyte*"),
}
NOT_ASKED_FOR, OVER_LIMIT, REPEATED = (
    "not in data.classes",
    "over data.limit",
    "in train_*, which repeats the partitions",
)
SPARE = "of the writers of the validation part, over data.validation_limit"
OWN, BY_WRITER, BY_IMAGE = "the source's own", "whole writers", "a share of each class"


@dataclass(frozen=True)
class Source:
    """What was read: `test` is None where the source tells no test part; `left_out` counts what was not asked for, by
    reason.
    """

    train: Images
    test: Images | None
    refused: tuple[Refusal, ...] = ()
    left_out: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Splits:
    """What a run trains on, chooses by, and reports; `removed` counts training images found again in the other two.

    `refused` and `left_out` are the source's; `apart` says how the test and the validation part were held out.
    """

    train: Images
    validation: Images
    test: Images
    removed: int
    refused: tuple[Refusal, ...] = ()
    left_out: dict[str, int] = field(default_factory=dict)
    apart: dict[str, str] = field(default_factory=dict)


def find_data(settings: DataSettings, given: str | Path | None, fetch: bool = False) -> Path:
    """The folder to read: data.path, or else `given`, or else the cache folder, into which EMNIST or MNIST is
    downloaded.

    `fetch`: download into `given`, too, if the files are not there. Raises DataError where there is nothing to go by.
    """
    if settings.path:
        return Path(settings.path).expanduser()
    root = Path(given) if given else cache_folder()
    if settings.source in DOWNLOADS:
        name, files = DOWNLOADS[settings.source]
        if not given or (fetch and not any(root.glob(files))):
            download(root, name)
    elif not given:
        raise DataError(f"data.source '{settings.source}' needs its folder: --set data.path=DIR, or EMNIST_ROOT")
    return root


def load_splits(settings: DataSettings, root: Path, size: int = SIZE) -> Splits:
    """Read data.path, or else `root`, and hold out a validation part, and a test part where the source has none.

    Images are `size` pixels a side: pictures of folders are prepared so, those of EMNIST, MNIST and CSV are enlarged
    from 28.
    """
    folder = find_data(settings, root)
    wanted = wanted_classes(settings.classes)
    source = (
        read_pictures(settings, folder, wanted, size)
        if settings.source in LISTS
        else read_files(settings, folder, wanted)
    )
    everything, test, seed = source.train, source.test, settings.validation_seed
    apart, left_out = {"test": OWN}, source.left_out
    if test is None:
        held_out, apart["test"] = hold_out(everything, settings.test_fraction, len(everything), seed)
        test, everything = everything.take(held_out), everything.take(~held_out)
    known = without(everything, test)
    held_out, apart["validation"] = hold_out(known, settings.validation_fraction, settings.validation_limit, seed)
    validation, rest = known.take(held_out), known.take(~held_out)
    if apart["validation"] == BY_WRITER:
        kept = sample_of_each_class(validation.labels, 1.0, settings.validation_limit, seed)
        validation, left_out = validation.take(kept), left_out | {SPARE: int((~kept).sum())}
    train = without(rest, validation)
    missing = sorted(set(range(len(test.classes))) - set(train.labels.tolist()))
    if missing:
        names = " ".join(test.classes[label] for label in missing)
        raise DataError(f"no image is left to train on of {names}; add some, or name the other classes in data.classes")
    removed = len(everything) - len(known) + len(rest) - len(train)
    left_out = {reason: count for reason, count in left_out.items() if count}
    return Splits(
        train.resized(size), validation.resized(size), test.resized(size), removed, source.refused, left_out, apart
    )


def wanted_classes(text: str) -> str:
    """The characters that data.classes names; none: all. Raises DataError."""
    classes = CLASS_SETS.get(text, text)
    repeated = sorted({c for c in classes if classes.count(c) > 1})
    if repeated:
        raise DataError(
            f"data.classes '{text}' repeats {' '.join(repeated)}; give each class once, or one of"
            f" {', '.join(CLASS_SETS)}"
        )
    return classes


def hold_out(data: Images, fraction: float, limit: int, seed: int) -> tuple[Tensor, str]:
    """A seeded choice, bool (N,), of `fraction` of the images, and how it was made: by whole writers where two or more
    are known.
    """
    if data.writers is not None and len(torch.unique(data.writers[data.writers >= 0])) > 1:
        return sample_of_writers(data.writers, fraction, seed), BY_WRITER
    return sample_of_each_class(data.labels, fraction, limit, seed), BY_IMAGE


def read_files(settings: DataSettings, folder: Path, wanted: str) -> Source:
    """Training and test file of EMNIST, MNIST or CSV."""
    if settings.source == "mnist":
        train, test = load_mnist(folder, "train"), load_mnist(folder, "test")
    else:
        load = load_csv if settings.source == "kaggle-csv" else load_emnist
        train, test = load(folder, settings.train_split, "train"), load(folder, settings.test_split, "test")
    if train.classes != test.classes:
        raise DataError(
            f"data.train_split '{settings.train_split}' and data.test_split '{settings.test_split}' differ in classes"
        )
    left_out: dict[str, int] = {}
    if wanted:
        asked_for = train.only(wanted), test.only(wanted)
        left_out[NOT_ASKED_FOR] = sum(map(len, (train, test))) - sum(map(len, asked_for))
        train, test = asked_for
    if settings.limit:
        limited = [
            part.take(sample_of_each_class(part.labels, 1.0, settings.limit, settings.validation_seed))
            for part in (train, test)
        ]
        left_out[OVER_LIMIT] = sum(map(len, (train, test))) - sum(map(len, limited))
        train, test = limited
    return Source(train, test, left_out=left_out)


def read_pictures(settings: DataSettings, folder: Path, wanted: str, size: int) -> Source:
    """Pictures of a folder, each decoded only if its class and the limit let it in."""
    if settings.source == "sd19" and (folder / "by_class").is_dir():
        folder /= "by_class"
    by_write = folder.parent / "by_write"
    listing = LISTS[settings.source](folder)
    if not listing.found:
        raise DataError(
            f"{folder} holds no picture with a class that data.source '{settings.source}' could tell"
            f" ({len(listing.refused)} without)"
        )
    classes = tuple(sorted(set(wanted) or {found.label for found in listing.found}, key=BY_CLASS.find))
    chosen = [found for found in listing.found if found.label in classes]
    left_out = {NOT_ASKED_FOR: len(listing.found) - len(chosen), OVER_LIMIT: 0, REPEATED: listing.repeated}
    absent = sorted(set(classes) - {found.label for found in chosen}, key=classes.index)
    if absent:
        raise DataError(f"data.classes: {folder} holds no picture of {' '.join(absent)}")
    labels = torch.tensor([classes.index(found.label) for found in chosen])
    is_test = torch.tensor([found.part == "test" for found in chosen])
    if settings.limit:
        keep = sample_of_each_class(labels + len(classes) * is_test, 1.0, settings.limit, settings.validation_seed)
        chosen = [found for found, kept in zip(chosen, keep.tolist(), strict=True) if kept]
        labels, is_test, left_out[OVER_LIMIT] = labels[keep], is_test[keep], int((~keep).sum())
    names = [found.name for found in chosen]
    decoded = decode(folder, names, size, by_write if settings.source == "sd19" and by_write.is_dir() else None)
    refused = [Refusal(name, str(code)) for name, code in zip(names, decoded.codes, strict=True) if code]
    writers = torch.from_numpy(decoded.writers) if (decoded.writers >= 0).any() else None
    data = Images(torch.from_numpy(decoded.images), labels, classes, writers)
    good = torch.from_numpy(decoded.codes == "")
    test = data.take(good & is_test) if (good & is_test).any() else None
    return Source(data.take(good & ~is_test), test, (*listing.refused, *refused), left_out)

"""Data sets that come as a few large files: EMNIST and MNIST as IDX, and EMNIST as CSV.

EMNIST (Cohen et al. 2017) comes as IDX files, the format of MNIST: http://yann.lecun.com/exdb/mnist/. Its images are
stored transposed, columns first, in IDX and in CSV; MNIST's are not. Everything that leaves this module is upright.
"""

from __future__ import annotations

import gzip
import logging
import math
import warnings
import zlib
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from handlers.alphabets import BY_CLASS, BY_MERGE, DIGITS, UPPER
from handlers.pictures.framing import SIZE
from training.data.images import DataError, Images

log = logging.getLogger(__name__)

CLASSES = {
    "balanced": BY_MERGE,
    "bymerge": BY_MERGE,
    "byclass": BY_CLASS,
    "letters": UPPER,
    "digits": DIGITS,
    "mnist": DIGITS,
}
FIRST_LABEL = {"letters": 1}  # that split counts its labels from 1
UINT8_IDX = b"\x00\x00\x08"  # the first three bytes of an IDX file of unsigned bytes
MNIST_PREFIX = {"train": "train", "test": "t10k"}


def load_emnist(root: Path, split: str, part: str) -> Images:
    """Read one file pair, `split` of CLASSES and `part` "train" or "test", below `root`/EMNIST/raw; writes nothing."""
    images, labels = read_pair(root / "EMNIST" / "raw", f"emnist-{split}-{part}")
    return labelled(
        f"emnist-{split}-{part}",
        images.transpose(0, 2, 1),
        labels.astype(np.int64) - FIRST_LABEL.get(split, 0),
        CLASSES[split],
    )


def load_mnist(root: Path, part: str) -> Images:
    """Read MNIST's `part` "train" or "test" below `root`/MNIST/raw; writes nothing."""
    images, labels = read_pair(root / "MNIST" / "raw", MNIST_PREFIX[part])
    return labelled(f"mnist-{part}", images, labels.astype(np.int64), DIGITS)


def load_csv(root: Path, split: str, part: str) -> Images:
    """Read `root`/emnist-SPLIT-PART.csv, as Kaggle offers EMNIST: rows of a label and 784 grey levels, columns first; a
    header may precede.
    """
    path = root / f"emnist-{split}-{part}.csv"
    try:
        # Loadtxt warns of a file without rows.
        with (
            path.open(encoding="utf-8-sig") as file,
            warnings.catch_warnings(action="error"),
        ):
            first = file.readline()
            header = not first.partition(",")[0].strip().isdigit()
            rows = np.loadtxt(file if header else chain([first], file), np.uint8, delimiter=",", ndmin=2)
    except FileNotFoundError as error:
        raise DataError(
            f"no {path}; data.path or EMNIST_ROOT must be the folder that holds Kaggle's CSV files of EMNIST"
        ) from error
    except (OSError, ValueError, UserWarning) as error:
        raise DataError(f"cannot read {path}: {error}; fetch it again") from error
    if rows.shape[1] != 1 + SIZE * SIZE:
        raise DataError(
            f"{path} has {rows.shape[1]} columns; a label and {SIZE * SIZE} grey levels make {1 + SIZE * SIZE}"
        )
    upright = rows[:, 1:].reshape(-1, SIZE, SIZE).transpose(0, 2, 1)
    return labelled(path.name, upright, rows[:, 0].astype(np.int64) - FIRST_LABEL.get(split, 0), CLASSES[split])


def labelled(name: str, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], classes: str) -> Images:
    """Images, once they and their labels are found to fit. Raises DataError."""
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise DataError(f"{name}: images {images.shape} and labels {labels.shape} do not belong together")
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= len(classes):
        raise DataError(f"{name}: labels must lie in 0 to {len(classes) - 1}, and there must be some")
    return Images(torch.from_numpy(np.array(images, order="C")), torch.from_numpy(labels), tuple(classes))


def read_pair(folder: Path, prefix: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Images and labels of the two IDX files PREFIX-images-idx3-ubyte and PREFIX-labels-idx1-ubyte, plain or with
    .gz.
    """

    def find(kind: str) -> Path:
        stem = folder / f"{prefix}-{kind}-ubyte"
        for path in (stem, stem.with_name(stem.name + ".gz")):
            if path.is_file():
                return path
        raise DataError(
            f"no {stem}[.gz]; EMNIST_ROOT must be the folder that holds {folder.parent.name}/raw, as torchvision lays"
            " it out"
        )

    return read_idx(find("images-idx3")), read_idx(find("labels-idx1"))


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, plain or gzip (recognised by its content), into an array of its own shape."""
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}; delete it and fetch it again") from error
    rank = raw[3] if raw[:3] == UINT8_IDX and len(raw) > 3 else 0
    header = 4 + 4 * rank
    if rank == 0 or len(raw) < header:
        raise DataError(f"{path} is not an IDX file of unsigned bytes; delete it and fetch it again")
    shape = np.frombuffer(raw, ">u4", rank, offset=4).tolist()
    if len(raw) - header != math.prod(shape):
        raise DataError(
            f"{path} holds {len(raw) - header} bytes where its header promises {math.prod(shape)}; fetch it again"
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def download(root: Path, name: str = "EMNIST") -> None:
    """Bring the official files of EMNIST (0.5 GB) or MNIST (12 MB) into `root`/NAME/raw by torchvision."""
    try:
        from torchvision import datasets  # noqa: PLC0415  only here: the serving environment has no torchvision
    except ImportError as error:
        raise DataError(
            f"downloading {name} needs torchvision: use `make train`, or give the files' folder as EMNIST_ROOT"
        ) from error
    log.info("downloading %s into %s", name, root)
    options = {"split": "balanced"} if name == "EMNIST" else {}  # all splits come in one archive
    try:
        getattr(datasets, name)(str(root), download=True, **options)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"the download of {name} failed ({error}); try again, or give the files' folder as EMNIST_ROOT"
        ) from error

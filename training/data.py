"""EMNIST files -> upright uint8 tensors, a seeded validation part, and no image on two sides of a split.

EMNIST (Cohen et al. 2017) comes as IDX files, the format of MNIST: http://yann.lecun.com/exdb/mnist/. Its images are
stored transposed, columns first; everything that leaves this module is upright.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from handlers.framing import SIZE, resize
from handlers.labels import BY_CLASS, BY_MERGE, DIGITS, UPPER
from training.settings import DataSettings

log = logging.getLogger(__name__)

CLASSES = {"balanced": BY_MERGE, "bymerge": BY_MERGE, "byclass": BY_CLASS, "letters": UPPER, "digits": DIGITS, "mnist": DIGITS}
FIRST_LABEL = {"letters": 1}  # that split counts its labels from 1
UINT8_IDX = b"\x00\x00\x08"  # the first three bytes of an IDX file of unsigned bytes


class DataError(Exception):
    """Data that is missing or damaged; the message says what to do."""


@dataclass(frozen=True)
class Images:
    """Labelled pictures: images uint8 (N, S, S), upright, light on black; labels int64 (N,), indices into classes."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> Images:
        return Images(self.images[index], self.labels[index], self.classes)

    def only(self, classes: str) -> Images:
        """The images of some `classes`, in the order of `self.classes`; of all where `classes` is empty. Raises DataError."""
        unknown = "".join(c for c in classes if c not in self.classes)
        if unknown:
            raise DataError(f"data.classes: the images have no class of '{unknown}'; there are: {''.join(self.classes)}")
        kept = [label for label, name in enumerate(self.classes) if not classes or name in classes]
        new_label = torch.full((len(self.classes),), -1)
        new_label[kept] = torch.arange(len(kept))
        labels = new_label[self.labels]
        return Images(self.images[labels >= 0], labels[labels >= 0], tuple(self.classes[label] for label in kept))

    def resized(self, size: int) -> Images:
        """The images at `size` pixels a side, as `handlers.preprocessing` hands a picture that is framed as EMNIST's to a network of that size."""
        if self.images.shape[-1] == size:
            return self
        images = np.empty((len(self), size, size), np.uint8)
        for place, image in enumerate(self.images.numpy()):
            images[place] = resize(image, size)
        return Images(torch.from_numpy(images), self.labels, self.classes)

    def fingerprint(self) -> str:
        """First 16 hexadecimal digits of the sha256 of classes, labels and images, in order."""
        digest = hashlib.sha256("".join(self.classes).encode())
        digest.update(self.labels.to(torch.uint8).numpy().tobytes())
        digest.update(self.images.numpy().tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Splits:
    """What a run trains on, chooses by, and reports; `removed` counts training images found again in the other two."""

    train: Images
    validation: Images
    test: Images
    removed: int


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
        raise DataError(f"{path} holds {len(raw) - header} bytes where its header promises {math.prod(shape)}; fetch it again")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "emnist"


def download(root: Path) -> None:
    """Bring EMNIST's official files into `root`/EMNIST/raw (0.5 GB, once) by torchvision."""
    try:
        from torchvision.datasets import EMNIST  # noqa: PLC0415  only here: the serving environment has no torchvision
    except ImportError as error:
        raise DataError("downloading EMNIST needs torchvision: use `make train`, or give the files' folder as EMNIST_ROOT") from error
    log.info("downloading EMNIST into %s", root)
    try:
        EMNIST(str(root), split="balanced", download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"the download of EMNIST failed ({error}); try again, or give the files' folder as EMNIST_ROOT") from error


def load_emnist(root: Path, split: str, part: str) -> Images:
    """Read one file pair, `split` of CLASSES and `part` "train" or "test", below `root`/EMNIST/raw; writes nothing."""

    def find(kind: str) -> Path:
        stem = root / "EMNIST" / "raw" / f"emnist-{split}-{part}-{kind}-ubyte"
        for path in (stem, stem.with_name(stem.name + ".gz")):
            if path.is_file():
                return path
        raise DataError(f"no {stem}[.gz]; EMNIST_ROOT must be the folder that holds EMNIST/raw, as torchvision lays it out")

    images = read_idx(find("images-idx3"))
    labels = read_idx(find("labels-idx1")).astype(np.int64) - FIRST_LABEL.get(split, 0)
    classes = tuple(CLASSES[split])
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise DataError(f"emnist-{split}-{part}: images {images.shape} and labels {labels.shape} do not belong together")
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= len(classes):
        raise DataError(f"emnist-{split}-{part}: labels must lie in 0 to {len(classes) - 1}, and there must be some")
    upright = np.ascontiguousarray(images.transpose(0, 2, 1))
    return Images(torch.from_numpy(upright), torch.from_numpy(labels), classes)


def load_splits(settings: DataSettings, root: Path, size: int = SIZE) -> Splits:
    """Read the training and test files below `root` and hold a validation part out of the training file; images at `size` pixels a side."""
    test = load_emnist(root, settings.test_split, "test").only(settings.classes)
    everything = load_emnist(root, settings.train_split, "train").only(settings.classes)
    if everything.classes != test.classes:
        raise DataError(f"data.train_split '{settings.train_split}' and data.test_split '{settings.test_split}' differ in classes")
    known = without(everything, test)
    held_out = validation_mask(known.labels, settings.validation_fraction, settings.validation_limit, settings.validation_seed)
    validation = known.take(held_out)
    train = without(known.take(~held_out), validation)
    removed = len(everything) - len(validation) - len(train)
    return Splits(train.resized(size), validation.resized(size), test.resized(size), removed)


def without(data: Images, other: Images) -> Images:
    """`data` less every image that also is in `other`, whatever its label, compared by hash."""
    hashes = _hashes(other.images)
    keep = torch.tensor([h not in hashes for h in map(_hash, data.images.numpy())], dtype=torch.bool)
    return data if keep.all() else data.take(keep)


def _hash(image: npt.NDArray[np.uint8]) -> bytes:
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()


def _hashes(images: Tensor) -> set[bytes]:
    return set(map(_hash, images.numpy()))


def validation_mask(labels: Tensor, fraction: float, limit: int, seed: int) -> Tensor:
    """A seeded choice, bool (N,), of `fraction` of each class and at most `limit` images of it; at least one."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for label in torch.unique(labels).tolist():
        members = (labels == label).nonzero().squeeze(1)
        count = max(1, min(limit, round(fraction * len(members))))
        mask[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return mask


def epoch_order(labels: Tensor, balance: float, generator: torch.Generator) -> Tensor:
    """The order of one epoch: int64 indices, as many as there are labels (up to rounding), each class a share of size ** (1 - balance).

    A class that is shown more often than it has images is gone through evenly: no image twice before each was shown once.
    """
    sizes = labels.bincount()
    weights = torch.where(sizes > 0, sizes.double() ** (1 - balance), 0.0)
    quotas = (weights / weights.sum() * len(labels)).round().long().tolist()
    parts = []
    for label, quota in enumerate(quotas):
        members = (labels == label).nonzero().squeeze(1)
        rounds = math.ceil(quota / max(1, len(members)))
        shuffled = [members[torch.randperm(len(members), generator=generator)] for _ in range(rounds)]
        parts.append(torch.cat([*shuffled, members[:0]])[:quota])
    order = torch.cat(parts)
    return order[torch.randperm(len(order), generator=generator)]

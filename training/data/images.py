"""Labelled pictures as tensors, and choices among them: seeded, by class or by writer, and never one image on two
sides.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from handlers.pictures.framing import resize


class DataError(Exception):
    """Data that is missing or damaged; the message says what to do."""


@dataclass(frozen=True)
class Images:
    """Labelled pictures: images uint8 (N, S, S), upright, light on black; labels int64 (N,), indices into classes.

    writers int64 (N,) numbers who wrote each, -1 where that is not known; None where nobody is.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    writers: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> Images:
        return Images(
            self.images[index], self.labels[index], self.classes, None if self.writers is None else self.writers[index]
        )

    def only(self, classes: str) -> Images:
        """The images of some `classes`, in the order of `self.classes`; of all where `classes` is empty. Raises
        DataError.
        """
        unknown = "".join(c for c in classes if c not in self.classes)
        if unknown:
            raise DataError(
                f"data.classes: the images have no class of '{unknown}'; there are: {''.join(self.classes)}"
            )
        kept = [label for label, name in enumerate(self.classes) if not classes or name in classes]
        new_label = torch.full((len(self.classes),), -1)
        new_label[kept] = torch.arange(len(kept))
        labels = new_label[self.labels]
        return Images(self.images, labels, tuple(self.classes[label] for label in kept), self.writers).take(labels >= 0)

    def resized(self, size: int) -> Images:
        """The images at `size` pixels a side, as `handlers.pictures.pipeline` hands a picture that is framed as
        EMNIST's to a network of that size.
        """
        if self.images.shape[-1] == size:
            return self
        images = np.empty((len(self), size, size), np.uint8)
        for place, image in enumerate(self.images.numpy()):
            images[place] = resize(image, size)
        return Images(torch.from_numpy(images), self.labels, self.classes, self.writers)

    def fingerprint(self) -> str:
        """First 16 hexadecimal digits of the sha256 of classes, labels and images, in order."""
        digest = hashlib.sha256("".join(self.classes).encode())
        digest.update(self.labels.to(torch.uint8).numpy().tobytes())
        digest.update(self.images.numpy().tobytes())
        return digest.hexdigest()[:16]


def without(data: Images, other: Images) -> Images:
    """`data` less every image that also is in `other`, whatever its label, compared by hash."""
    hashes = _hashes(other.images)
    keep = torch.tensor([h not in hashes for h in map(_hash, data.images.numpy())], dtype=torch.bool)
    return data if keep.all() else data.take(keep)


def _hash(image: npt.NDArray[np.uint8]) -> bytes:
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()


def _hashes(images: Tensor) -> set[bytes]:
    return set(map(_hash, images.numpy()))


def sample_of_each_class(labels: Tensor, fraction: float, limit: int, seed: int) -> Tensor:
    """A seeded choice, bool (N,), of `fraction` of each class and at most `limit` images of it; at least one."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for label in torch.unique(labels).tolist():
        members = (labels == label).nonzero().squeeze(1)
        count = max(1, min(limit, round(fraction * len(members))))
        mask[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return mask


def sample_of_writers(writers: Tensor, fraction: float, seed: int) -> Tensor:
    """Seeded, bool (N,): all images of so many writers that these are at least `fraction` of the images; one writer at
    least stays.

    Images of unknown writers, -1, are never chosen.
    """
    names, counts = torch.unique(writers[writers >= 0], return_counts=True)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))
    before = counts[order].cumsum(0) - counts[order]  # images chosen before each writer's turn
    chosen = names[order[: len(names) - 1][before[: len(names) - 1] < fraction * len(writers)]]
    return torch.isin(writers, chosen)


def epoch_order(labels: Tensor, balance: float, generator: torch.Generator) -> Tensor:
    """The order of one epoch: int64 indices, as many as there are labels (up to rounding), each class a share of size
    ** (1 - balance).

    A class that is shown more often than it has images is gone through evenly: no image twice before each was shown
    once.
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

"""What a model answered on a part of the data, kept in the run's folder: the ground of reports and of comparisons
between runs.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.metrics import f1_score, precision_recall_fscore_support, roc_auc_score, roc_curve

from common.files import replaced
from training.data import DataError
from training.evaluation.metrics import wilson

ROC_POINTS = 1001  # false-positive rates, evenly spaced, at which the curves of all classes are averaged


@dataclass(frozen=True)
class Answers:
    """Class probabilities (N, C) and labels (N,), class indices; `fingerprint` names the images, as
    `Images.fingerprint` does.
    """

    probabilities: npt.NDArray[np.floating]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    fingerprint: str

    @cached_property
    def said(self) -> npt.NDArray[np.int64]:
        """The most probable class of each image, (N,)."""
        return np.asarray(self.probabilities.argmax(axis=1), np.int64)

    @cached_property
    def right(self) -> npt.NDArray[np.bool_]:
        return np.asarray(self.said == self.labels, np.bool_)

    def save(self, path: Path) -> None:
        """Write them to `path`, atomically."""
        with replaced(path) as stream:
            np.savez_compressed(
                stream,
                probabilities=self.probabilities.astype(np.float32),
                labels=self.labels.astype(np.int16),
                classes=np.array(self.classes),
                fingerprint=np.array(self.fingerprint),
            )

    @classmethod
    def load(cls, path: Path) -> Answers:
        """Raises DataError for what `save` has not written."""
        try:
            with np.load(path) as kept:
                classes = tuple(map(str, kept["classes"]))
                return cls(kept["probabilities"], kept["labels"].astype(np.int64), classes, str(kept["fingerprint"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} does not hold a model's answers ({error}); delete it") from error

    def confusion(self) -> npt.NDArray[np.int64]:
        """How often each class (rows) was read as each class (columns), (C, C)."""
        count = len(self.classes)
        return (
            np.bincount(self.labels * count + self.said, minlength=count * count).reshape(count, count).astype(np.int64)
        )

    def per_class(self) -> dict[str, dict[str, float]]:
        """{class: {n, precision, recall, low, high, f1}}, the interval Wilson's of the recall; classes without an image
        are left out.
        """
        present = np.unique(self.labels)
        precision, recall, f1, n = precision_recall_fscore_support(
            self.labels, self.said, labels=present, zero_division=0.0
        )
        hits = np.bincount(self.labels[self.right], minlength=len(self.classes))
        rows: dict[str, dict[str, float]] = {}
        for place, index in enumerate(present):
            low, high = wilson(int(hits[index]), int(n[place]))
            numbers = {
                "precision": precision[place],
                "recall": recall[place],
                "low": low,
                "high": high,
                "f1": f1[place],
            }
            rows[self.classes[index]] = {"n": int(n[place])} | {
                name: round(float(value), 5) for name, value in numbers.items()
            }
        return rows

    def f1(self) -> dict[str, float]:
        """F1 over the classes that have images: the mean, weighted by their numbers, and of each alike ("macro")."""
        present = np.unique(self.labels)
        return {
            kind: float(f1_score(self.labels, self.said, labels=present, average=kind, zero_division=0.0))
            for kind in ("weighted", "macro")
        }

    def overall(self) -> dict[str, float]:
        """The part's figures: n, accuracy with the ends of Wilson's 95 % interval, and F1."""
        low, high = wilson(int(self.right.sum()), len(self.right))
        f1 = self.f1()
        accuracy = float(self.right.mean())
        return {
            "n": len(self.right),
            "accuracy": accuracy,
            "low": low,
            "high": high,
            "f1_weighted": f1["weighted"],
            "f1_macro": f1["macro"],
        }

    def roc(self) -> Roc:
        """One-vs-rest curves: each class's own images against all others, ranked by that class's probability."""
        rates = np.linspace(0, 1, ROC_POINTS)
        curves, areas = {}, {}
        for index in np.unique(self.labels):
            truth, score = self.labels == index, self.probabilities[:, index]
            if truth.all():
                continue  # no other image to rank below
            false_positive, true_positive, _ = roc_curve(truth, score)
            curves[self.classes[index]] = np.interp(rates, false_positive, true_positive)
            areas[self.classes[index]] = float(roc_auc_score(truth, score))
        return Roc(rates, curves, areas)


@dataclass(frozen=True)
class Roc:
    """`curves`: each class's true-positive rate at the false-positive `rates`; `areas`: each class's area under its
    curve.
    """

    rates: npt.NDArray[np.float64]
    curves: dict[str, npt.NDArray[np.float64]]
    areas: dict[str, float]

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.areas.values())))

    @property
    def deviation(self) -> float:
        """The standard deviation of the areas over the classes."""
        return float(np.std(list(self.areas.values())))

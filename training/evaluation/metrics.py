"""How well class probabilities fit labels: accuracy with its standard error, calibration, coverage, recall and the
worst pairs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from handlers.alphabets import ALPHABET_NAMES, UnknownAlphabet, make_fold

CALIBRATION_BINS = 15
WORST_PAIRS = 15
COVERAGE_THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)  # of confidence, for --min-confidence of the batch program


def measure(
    probabilities: npt.NDArray[np.floating], labels: npt.NDArray[np.int64], classes: Sequence[str]
) -> dict[str, Any]:
    """Compare class probabilities (N, C) with labels (N,), class indices.

    Returns {"alphabets": {name: {n, accuracy, standard_error, ece, nll}}, "recall": {class: share}, "recall_interval":
    {class: [low, high, n]}, "confusions": [[true, said, count], ...]}. The interval is Wilson's, of 95 %. An alphabet
    is measured on the images whose folded label it holds.
    """
    alphabets = {}
    for name in ALPHABET_NAMES:
        try:
            fold = make_fold(classes, name)
        except UnknownAlphabet:
            continue
        belongs = np.asarray(fold.matrix.any(axis=1))[labels]
        if belongs.any():
            truth = fold.matrix.argmax(axis=1)[labels[belongs]]
            alphabets[name] = _score(fold(probabilities[belongs]), truth)
    said = probabilities.argmax(axis=1)
    present = {c: said[labels == c] == c for c in np.unique(labels)}
    recall = {classes[c]: round(float(right.mean()), 4) for c, right in present.items()}
    intervals = {
        classes[c]: [*(round(end, 4) for end in wilson(int(right.sum()), len(right))), len(right)]
        for c, right in present.items()
    }
    return {
        "alphabets": alphabets,
        "recall": recall,
        "recall_interval": intervals,
        "confusions": worst_pairs(said, labels, classes),
    }


def worst_pairs(said: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], classes: Sequence[str]) -> list[list[Any]]:
    """[true, said, count] of the WORST_PAIRS most frequent errors, from answers (N,) and labels (N,), class indices."""
    wrong = Counter((int(t), int(s)) for t, s in zip(labels, said, strict=True) if t != s)
    return [[classes[t], classes[s], n] for (t, s), n in wrong.most_common(WORST_PAIRS)]


def wilson(right: int, n: int) -> tuple[float, float]:
    """The ends of Wilson's 95 % confidence interval of a share, `right` of `n` (Wilson 1927); 0 to 1 where n is 0."""
    if n == 0:
        return 0.0, 1.0
    interval = binomtest(right, n).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def _score(probabilities: npt.NDArray[np.floating], truth: npt.NDArray[np.int64]) -> dict[str, Any]:
    right = np.asarray(probabilities.argmax(axis=1) == truth)
    accuracy = float(right.mean())
    chosen = np.maximum(probabilities[np.arange(len(truth)), truth], 1e-12)
    return {
        "n": len(truth),
        "accuracy": round(accuracy, 5),
        "standard_error": round(math.sqrt(accuracy * (1 - accuracy) / len(truth)), 5),
        "ece": round(calibration_error(probabilities.max(axis=1), right), 5),
        "nll": round(float(-np.log(chosen).mean()), 5),
        "coverage": coverage(probabilities.max(axis=1), right),
    }


def coverage(confidence: npt.NDArray[np.floating], right: npt.NDArray[np.bool_]) -> list[list[float]]:
    """[threshold, share of answers at or above it, accuracy of these] for each of COVERAGE_THRESHOLDS that leaves
    any.
    """
    kept = [(threshold, confidence >= threshold) for threshold in COVERAGE_THRESHOLDS]
    return [
        [threshold, round(float(k.mean()), 4), round(float(right[k].mean()), 5)] for threshold, k in kept if k.any()
    ]


def calibration_error(
    confidence: npt.NDArray[np.floating], right: npt.NDArray[np.bool_], bins: int = CALIBRATION_BINS
) -> float:
    """Expected calibration error over equally wide bins (Guo et al. 2017, "On Calibration of Modern Neural Networks",
    eq. 3).
    """
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        abs(right[index == b].mean() - confidence[index == b].mean()) * (index == b).mean() for b in np.unique(index)
    ]
    return float(sum(gaps))

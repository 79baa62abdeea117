"""How well class probabilities fit labels: accuracy with its standard error, calibration, coverage, recall and the worst pairs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from handlers.labels import ALPHABET_NAMES, UnknownAlphabet, make_fold

CALIBRATION_BINS = 15
WORST_PAIRS = 15
COVERAGE_THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)  # of confidence, for --min-confidence of the batch program


def measure(probabilities: npt.NDArray[np.floating], labels: npt.NDArray[np.int64], classes: Sequence[str]) -> dict[str, Any]:
    """Compare class probabilities (N, C) with labels (N,), class indices.

    Returns {"alphabets": {name: {n, accuracy, standard_error, ece, nll}}, "recall": {class: share}, "confusions":
    [[true, said, count], ...]}. An alphabet is measured on the images whose folded label it holds.
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
    recall = {classes[c]: round(float((said[labels == c] == c).mean()), 4) for c in np.unique(labels)}
    wrong = Counter((int(t), int(s)) for t, s in zip(labels, said, strict=True) if t != s)
    confusions = [[classes[t], classes[s], n] for (t, s), n in wrong.most_common(WORST_PAIRS)]
    return {"alphabets": alphabets, "recall": recall, "confusions": confusions}


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
    """[threshold, share of answers at or above it, accuracy of these] for each of COVERAGE_THRESHOLDS that leaves any."""
    kept = [(threshold, confidence >= threshold) for threshold in COVERAGE_THRESHOLDS]
    return [[threshold, round(float(k.mean()), 4), round(float(right[k].mean()), 5)] for threshold, k in kept if k.any()]


def calibration_error(confidence: npt.NDArray[np.floating], right: npt.NDArray[np.bool_], bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error over equally wide bins (Guo et al. 2017, "On Calibration of Modern Neural Networks", eq. 3)."""
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(right[index == b].mean() - confidence[index == b].mean()) * (index == b).mean() for b in np.unique(index)]
    return float(sum(gaps))

"""How well a model reads: accuracy with its standard error, calibration, recall by class and the worst pairs, by alphabet.

python -m training.evaluate MODEL.pt --emnist-root DIR [--split balanced]
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from handlers.labels import ALPHABET_NAMES, UnknownAlphabet, make_fold
from handlers.recognizer import ModelError, Recognizer
from training.data import CLASSES, DataError, Images, load_emnist

CALIBRATION_BINS = 15
WORST_PAIRS = 15
EVALUATION_BATCH = 500  # images


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


def _score(probabilities: npt.NDArray[np.floating], truth: npt.NDArray[np.int64]) -> dict[str, float]:
    right = np.asarray(probabilities.argmax(axis=1) == truth)
    accuracy = float(right.mean())
    chosen = np.maximum(probabilities[np.arange(len(truth)), truth], 1e-12)
    return {
        "n": len(truth),
        "accuracy": round(accuracy, 5),
        "standard_error": round(math.sqrt(accuracy * (1 - accuracy) / len(truth)), 5),
        "ece": round(calibration_error(probabilities.max(axis=1), right), 5),
        "nll": round(float(-np.log(chosen).mean()), 5),
    }


def calibration_error(confidence: npt.NDArray[np.floating], right: npt.NDArray[np.bool_], bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error over equally wide bins (Guo et al. 2017, "On Calibration of Modern Neural Networks", eq. 3)."""
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(right[index == b].mean() - confidence[index == b].mean()) * (index == b).mean() for b in np.unique(index)]
    return float(sum(gaps))


def evaluate(recognizer: Recognizer, data: Images) -> dict[str, Any]:
    """Score `data`, whose classes must be the model's, with a loaded model."""
    if recognizer.classes != data.classes:
        raise DataError(f"the model knows {''.join(recognizer.classes)}, the data {''.join(data.classes)}")
    images = data.images.numpy()
    parts = [recognizer.probabilities(images[i : i + EVALUATION_BATCH]) for i in range(0, len(images), EVALUATION_BATCH)]
    return measure(np.concatenate(parts), data.labels.numpy(), data.classes)


def table(result: dict[str, Any]) -> str:
    """The result in lines for a terminal."""
    lines = [f"{'alphabet':<10}{'n':>7}{'accuracy':>11}{'+- SE':>8}{'ECE':>8}"]
    for name, s in result["alphabets"].items():
        accuracy, error = 100 * s["accuracy"], 100 * s["standard_error"]
        lines.append(f"{name:<10}{s['n']:>7}{accuracy:>10.2f}%{error:>8.2f}{100 * s['ece']:>7.2f}%")
    pairs = ", ".join(f"{true}->{said} {n}" for true, said, n in result["confusions"])
    recall = " ".join(f"{c} {100 * r:.0f}" for c, r in sorted(result["recall"].items(), key=lambda item: item[1]))
    return "\n".join([*lines, f"worst pairs (true->said): {pairs}", f"recall, %, lowest first: {recall}"])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description="Score an exported model on an EMNIST test file.")
    parser.add_argument("model", type=Path, help="the exported emnist.pt")
    parser.add_argument("--emnist-root", type=Path, default=os.environ.get("EMNIST_ROOT"), help="folder that holds EMNIST/raw")
    parser.add_argument("--split", choices=sorted(CLASSES), default="balanced")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.emnist_root is None:
        parser.error("give --emnist-root (or EMNIST_ROOT), the folder that holds EMNIST/raw")
    try:
        result = evaluate(Recognizer(arguments.model), load_emnist(Path(arguments.emnist_root), arguments.split, "test"))
    except (DataError, ModelError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result) if arguments.json else table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How well a model reads pictures as users have them, and under the corruptions of public benchmarks: picture file to
answer.

Every picture takes the real path: it is written as a PNG, decoded and prepared by `handlers.pictures.pipeline`, and
read.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from handlers.alphabets import DEFAULT_ALPHABET
from handlers.pictures.decoding import InvalidImage
from handlers.pictures.pipeline import read_image
from handlers.recognizer import Recognizer
from training.data import Images
from training.degrade.severities import CORRUPTIONS
from training.degrade.strokes import UNIT, Picture
from training.degrade.styles import BLANK, USERS
from training.evaluation.metrics import calibration_error

GROUPS = {"users": USERS, "corruptions": CORRUPTIONS, "blank": BLANK}
SEED = 2026
EVALUATION_BATCH = 500  # images


def measure_pictures(recognizer: Recognizer, data: Images, count: int) -> list[dict[str, Any]]:
    """Score `count` images of `data`, chosen by a fixed seed, in every style: a row a style, with its accuracy, ECE and
    time.

    A picture that is refused as blank counts as read wrongly with confidence 0; where it is blank, to refuse it is what
    is right. `ms` is decoding and preparing, without the network.
    """
    chosen = np.sort(np.random.default_rng(SEED).permutation(len(data))[:count])
    some = data.take(torch.from_numpy(chosen)).resized(UNIT)
    images, labels = some.images.numpy(), some.labels.numpy()
    fold = recognizer.fold(DEFAULT_ALPHABET)
    truth = fold.matrix.argmax(axis=1)[labels]
    rows = []
    for group, styles in GROUPS.items():
        for number, (name, style) in enumerate(styles.items()):
            rng = np.random.default_rng([SEED, number])
            files = [encode(style(image, rng)) for image in images]
            started = time.perf_counter()
            prepared, refused = prepare_all(files, recognizer.input_size)
            seconds = time.perf_counter() - started
            probabilities = fold(probabilities_of(recognizer, prepared))
            right = refused if group == "blank" else (probabilities.argmax(axis=1) == truth) & ~refused
            accuracy = float(right.mean())
            rows.append(
                {
                    "group": group,
                    "style": name,
                    "n": len(images),
                    "accuracy": round(accuracy, 5),
                    "standard_error": round(math.sqrt(accuracy * (1 - accuracy) / len(images)), 5),
                    "ece": (
                        0.0
                        if group == "blank"
                        else round(calibration_error(probabilities.max(axis=1) * ~refused, right), 5)
                    ),
                    "refused": round(float(refused.mean()), 5),
                    "ms": round(1000 * seconds / len(images), 3),
                }
            )
    return rows


def probabilities_of(recognizer: Recognizer, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Class probabilities (N, C) of any number of prepared images (N, S, S)."""
    parts = [
        recognizer.probabilities(images[start : start + EVALUATION_BATCH])
        for start in range(0, len(images), EVALUATION_BATCH)
    ]
    return np.concatenate(parts)


def encode(picture: Picture) -> bytes:
    """A PNG of grey (H, W) or RGBA (H, W, 4)."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def prepare_all(files: Sequence[bytes], size: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Pictures prepared, uint8 (N, size, size), and which of them were refused; these are black."""
    prepared = np.zeros((len(files), size, size), np.uint8)
    refused = np.zeros(len(files), np.bool_)
    for index, file in enumerate(files):
        try:
            prepared[index] = read_image(file, size)
        except InvalidImage:
            refused[index] = True
    return prepared, refused


def mean_of(rows: Sequence[dict[str, Any]], group: str, field: str) -> float:
    return float(np.mean([row[field] for row in rows if row["group"] == group]))


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table, with the mean of each group."""
    lines = [
        "| style | n | accuracy | standard error | ECE | refused | ms |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for group in GROUPS:
        for row in (row for row in rows if row["group"] == group):
            ece = "" if group == "blank" else f"{100 * row['ece']:.1f} %"
            shares = (
                f"{100 * row['accuracy']:.1f} % | {100 * row['standard_error']:.1f} | {ece} |"
                f" {100 * row['refused']:.1f} %"
            )
            lines.append(f"| {row['style']} | {row['n']:,} | {shares} | {row['ms']:.2f} |")
        accuracy, mean_ece, ms = (mean_of(rows, group, field) for field in ("accuracy", "ece", "ms"))
        calibration = "" if group == "blank" else f"{100 * mean_ece:.1f} %"
        lines.append(f"| **mean of {group}** | | **{100 * accuracy:.1f} %** | | {calibration} | | {ms:.2f} |")
    return "\n".join(lines)

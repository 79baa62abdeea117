"""Pictures to look at: what the preprocessing hands to the network in every style, and the errors that a model is
surest of.
"""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from handlers.alphabets import DEFAULT_ALPHABET
from handlers.pictures.decoding import Grey, to_grey
from handlers.recognizer import Recognizer
from training.data import Images
from training.degrade.strokes import UNIT
from training.degrade.styles import BLANK
from training.evaluation.robustness import GROUPS, SEED, encode, prepare_all, probabilities_of

COLUMNS = 12  # pictures a row
CELL = 48  # pixels a side of a picture
ERRORS = 60  # pictures on the sheet of errors


def contact_sheet(recognizer: Recognizer, data: Images, out: Path) -> None:
    """Draw every style as a row of pictures, each above what the network is given; what is read wrongly has a white bar
    below.
    """
    chosen = np.random.default_rng(SEED).permutation(len(data))[:COLUMNS]
    some = data.take(torch.from_numpy(chosen)).resized(UNIT)
    images, labels = some.images.numpy(), some.labels.numpy()
    fold = recognizer.fold(DEFAULT_ALPHABET)
    truth = fold.matrix.argmax(axis=1)[labels]
    rows = []
    for styles in GROUPS.values():
        for number, style in enumerate(styles.values()):
            rng = np.random.default_rng([SEED, number])
            pictures = [style(image, rng) for image in images]
            prepared, refused = prepare_all([encode(picture) for picture in pictures], recognizer.input_size)
            right = (
                refused
                if styles is BLANK
                else (fold(recognizer.probabilities(prepared)).argmax(axis=1) == truth) & ~refused
            )
            cells = [
                _cell(to_grey(Image.fromarray(p)), given, bool(good))
                for p, given, good in zip(pictures, prepared, right, strict=True)
            ]
            rows.append(np.hstack(cells))
    half = math.ceil(len(rows) / 2)
    rows += [np.zeros_like(rows[0])] * (2 * half - len(rows))
    Image.fromarray(np.hstack([np.vstack(rows[:half]), np.vstack(rows[half:])])).save(out, optimize=True)


def _cell(picture: Grey, given: Grey, right: bool) -> Grey:
    shrink = CELL / max(picture.shape)
    shape = (max(1, round(picture.shape[1] * shrink)), max(1, round(picture.shape[0] * shrink)))
    above = np.full((CELL, CELL), 110, np.uint8)
    above[: shape[1], : shape[0]] = cv2.resize(
        picture, shape, interpolation=cv2.INTER_AREA if shrink < 1 else cv2.INTER_NEAREST
    )
    below = cv2.resize(given, (CELL, CELL), interpolation=cv2.INTER_NEAREST)
    bar = np.full((3, CELL), 90 if right else 255, np.uint8)
    return np.asarray(
        cv2.copyMakeBorder(np.vstack([above, below, bar]), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=90), np.uint8
    )


def error_sheet(recognizer: Recognizer, data: Images, out: Path) -> None:
    """Draw the errors with the highest confidence, most confident first, each above its label and what it is read
    as.
    """
    fold = recognizer.fold(DEFAULT_ALPHABET)
    truth = fold.matrix.argmax(axis=1)[data.labels.numpy()]
    probabilities = fold(probabilities_of(recognizer, data.resized(recognizer.input_size).images.numpy()))
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != truth)
    worst = wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:ERRORS]
    cells = [
        _labelled(data.images[i].numpy(), f"{fold.characters[truth[i]]}>{fold.characters[probabilities[i].argmax()]}")
        for i in worst
    ]
    cells += [np.zeros((CELL + 18, CELL), np.uint8)] * (-len(cells) % COLUMNS or COLUMNS * (not cells))
    rows = [np.hstack(cells[start : start + COLUMNS]) for start in range(0, len(cells), COLUMNS)]
    Image.fromarray(np.vstack(rows)).save(out, optimize=True)


def _labelled(image: Grey, text: str) -> Grey:
    above = cv2.resize(image, (CELL, CELL), interpolation=cv2.INTER_NEAREST)
    below = np.zeros((18, CELL), np.uint8)
    cv2.putText(below, text, (8, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, 255, 1, cv2.LINE_AA)
    return np.asarray(np.vstack([above, below]), np.uint8)

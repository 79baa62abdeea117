"""A folder of labelled pictures, read by a model: which are right, and what could not be scored.

A picture's label is the folder that it lies in, where that has a name of one character, else the first character of its
own name, where that stands alone: `7.png`, `7_x.png`, `7 (2).jpg`, not `IMG_7.png`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.folders import SUFFIXES
from handlers.alphabets import NATIVE_ALPHABET, Fold
from handlers.pictures.decoding import InvalidImage
from handlers.pictures.pipeline import read_image
from handlers.recognizer import Recognizer, read
from training.data import DataError
from training.data.folders import label_of_name, pictures_below
from training.evaluation.metrics import wilson

CHUNK = 256  # pictures that are read at a time
LISTED = 20  # names that a table lists of a kind


@dataclass(frozen=True)
class FolderScore:
    """`answers`: (path, label, what was read; "" for a refused picture). The paths are relative to the folder."""

    answers: list[tuple[str, str, str]]
    refused: list[tuple[str, str]]  # (path, why): counted as read wrongly
    unlabelled: list[tuple[str, str]]  # (path, why): not counted

    @property
    def correct(self) -> int:
        return sum(said == label for _, label, said in self.answers)

    def fraction(self) -> str:
        return f"{self.correct} / {len(self.answers)}"

    def intervals(self) -> dict[str, tuple[float, float, float]]:
        """{character: (accuracy, low, high)} with Wilson's 95 % interval."""
        total = Counter(label for _, label, _ in self.answers)
        right = Counter(label for _, label, said in self.answers if said == label)
        return {label: (right[label] / n, *wilson(right[label], n)) for label, n in sorted(total.items())}

    def to_dict(self) -> dict[str, Any]:
        low, high = wilson(self.correct, len(self.answers))
        return {"correct": self.correct, "total": len(self.answers), "low": low, "high": high, **asdict(self)}

    def table(self) -> str:
        """The score in lines for a terminal; the first is correct / total."""
        low, high = (100 * end for end in wilson(self.correct, len(self.answers)))
        percent = 100 * self.correct / len(self.answers)
        lines = [f"{self.fraction()} correct: {percent:.2f} % (95 % interval {low:.2f} to {high:.2f})"]
        total = Counter(label for _, label, _ in self.answers)
        lines += [
            f"{label} {100 * share:5.1f} % ({100 * low:5.1f} to {100 * high:5.1f}) {total[label]:>5}"
            for label, (share, low, high) in self.intervals().items()
        ]
        wrong = [(path, f"{label} read as {said}") for path, label, said in self.answers if said not in {label, ""}]
        for title, items in (
            ("read wrongly", wrong),
            ("refused, counted as wrong", self.refused),
            ("without a label that counts, left out", self.unlabelled),
        ):
            if items:
                lines += [f"{len(items)} {title}:", *(f"  {path}: {why}" for path, why in items[:LISTED])]
                lines += ["  ..."] * (len(items) > LISTED)
        return "\n".join(lines)


def label_of(name: str) -> str:
    """The label that the path of a picture, relative to the folder that is scored, tells; "" for none."""
    parent = Path(name).parent.name
    return parent if len(parent) == 1 else label_of_name(name)


def score_folder(recognizer: Recognizer, folder: Path, alphabet: str) -> FolderScore:
    """Read every labelled picture below `folder` as a character of `alphabet`; a lower-case label counts as its capital
    where the alphabet has only that. Raises DataError where nothing is labelled, UnknownAlphabet for an alphabet that
    the model lacks.
    """
    fold = recognizer.fold(alphabet)
    score = FolderScore([], [], [])
    labelled = []
    names = pictures_below(folder) if folder.is_dir() else []
    if not names:
        raise DataError(f"{folder} is no folder that holds pictures ({', '.join(SUFFIXES)})")
    for name in names:
        path, label = folder / name, label_of(name)
        known = label if label in fold.characters or alphabet == NATIVE_ALPHABET else label.upper()
        if label and known in fold.characters:
            labelled.append((path, name, known))
        else:
            score.unlabelled.append((name, f"'{label}' is not in the alphabet" if label else "its name tells no label"))
    if not labelled:
        raise DataError(
            f"none of the {len(score.unlabelled)} pictures in {folder} has a label of '{alphabet}': name them 7_x.png"
            " or sort them into 7/"
        )
    for start in range(0, len(labelled), CHUNK):
        score.answers.extend(_read(recognizer, fold, labelled[start : start + CHUNK], score.refused))
    return score


def _read(
    recognizer: Recognizer, fold: Fold, chunk: list[tuple[Path, str, str]], refused: list[tuple[str, str]]
) -> Iterator[tuple[str, str, str]]:
    images, said = [], dict.fromkeys(range(len(chunk)), "")
    places = []
    for place, (path, name, _) in enumerate(chunk):
        try:
            images.append(read_image(path.read_bytes(), recognizer.input_size))
            places.append(place)
        except InvalidImage as error:
            refused.append((name, f"{error.code}: {error}"))
        except OSError as error:
            refused.append((name, f"cannot be read: {error.strerror}"))
    if images:
        for place, row in zip(places, recognizer.probabilities(np.stack(images)), strict=True):
            said[place] = read(row, fold).character
    return ((name, label, said[place]) for place, (_, name, label) in enumerate(chunk))

"""A trained model behind one call: pictures in, characters with confidences out.

Everything about the model is read from its one file: a TorchScript module that takes uint8 (B, S, S) and returns
calibrated class probabilities (B, C), with `model.json` (class names, input size, recipe, metrics) among its extra
files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from handlers.alphabets import DEFAULT_ALPHABET, Fold, make_fold

META_FILE = "model.json"
VERSION_DIGITS = 12  # hexadecimal digits of the model file's sha256 that name it
DEFAULT_TOP_K = 3  # the answer and two alternatives


class ModelError(Exception):
    """A model file that cannot be used; the message says why."""


@dataclass(frozen=True)
class Prediction:
    """The most probable character of an alphabet, and the next ones."""

    character: str
    confidence: float  # probability, 0 to 1
    alphabet: str
    alternatives: tuple[tuple[str, float], ...]  # (character, probability), most probable first


class Recognizer:
    """A loaded model. `classes` are its own labels, `input_size` is S in pixels, `version` the file's short sha256.

    Raises ModelError if `path` is no file made by `python -m training.export`.
    """

    def __init__(self, path: Path | str, device: str = "cpu") -> None:
        path = Path(path)
        extra = {META_FILE: ""}
        try:
            self.version = hashlib.sha256(path.read_bytes()).hexdigest()[:VERSION_DIGITS]
            module: torch.jit.ScriptModule = torch.jit.load(  # type: ignore[no-untyped-call]
                str(path), map_location=device, _extra_files=extra
            )
            self.meta = checked(json.loads(extra[META_FILE]))
        except (OSError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ModelError(f"{path} is not a model made by `python -m training.export`: {reason}") from error
        self.classes: tuple[str, ...] = tuple(self.meta["classes"])
        self.input_size: int = self.meta["input_size"]
        self._device = torch.device(device)
        self._module = torch.jit.freeze(module.eval())
        self._fold = cache(lambda alphabet: make_fold(self.classes, alphabet))

    def fold(self, alphabet: str) -> Fold:
        """The model's fold to `alphabet`, made once. Raises UnknownAlphabet."""
        return self._fold(alphabet)

    def probabilities(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Class probabilities float32 (B, C) of upright images uint8 (B, S, S), light on black."""
        batch = torch.from_numpy(np.ascontiguousarray(images)).to(self._device)
        with torch.inference_mode():
            result: npt.NDArray[np.float32] = self._module(batch).cpu().numpy()
        return result

    def predict(
        self, images: npt.NDArray[np.uint8], alphabet: str = DEFAULT_ALPHABET, top_k: int = DEFAULT_TOP_K
    ) -> list[Prediction]:
        """Read images uint8 (B, S, S) as characters of `alphabet`; each answer holds `top_k` of them in all."""
        return [read(row, self.fold(alphabet), top_k) for row in self.probabilities(images)]


def checked(meta: Any) -> dict[str, Any]:
    """What a model's file says of it, once it says what is needed here. Raises ValueError."""
    if not isinstance(meta, dict):
        raise ValueError(f"{META_FILE} holds no JSON object")
    classes, size = meta.get("classes"), meta.get("input_size")
    if not isinstance(classes, list) or not classes or not all(isinstance(c, str) and len(c) == 1 for c in classes):
        raise ValueError(f"'classes' of {META_FILE} is no list of characters")
    if len(set(classes)) < len(classes):
        raise ValueError(f"'classes' of {META_FILE} names a character twice")
    if type(size) is not int or size < 1:  # a bool is an int, too
        raise ValueError(f"'input_size' of {META_FILE} is no number of pixels")
    return meta


def read(probabilities: npt.NDArray[np.floating], fold: Fold, top_k: int = DEFAULT_TOP_K) -> Prediction:
    """One image's class probabilities (C,) as a Prediction in the fold's alphabet; ties go to the character that comes
    first.
    """
    folded = fold(probabilities)
    order = np.argsort(-folded, kind="stable")[:top_k]
    ranked: Sequence[tuple[str, float]] = [(fold.characters[i], float(folded[i])) for i in order]
    return Prediction(*ranked[0], alphabet=fold.alphabet, alternatives=tuple(ranked[1:]))

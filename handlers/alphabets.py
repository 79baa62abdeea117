"""Class sets, alphabets, and folding lower case into upper.

A model knows *classes* (its own labels, such as the 47 of EMNIST Balanced); a user asks for an *alphabet*. Going from
one to the other is a sum: the probability of the character "A" is that of class "A" plus that of class "a". Both the
folding and the choice of an alphabet are one 0/1 matrix of shape (classes, characters), followed by a renormalisation.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DIGITS = string.digits
UPPER = string.ascii_uppercase
LOWER = string.ascii_lowercase

# Class sets in the order of the label files (Cohen et al. 2017, "EMNIST: an extension of MNIST to handwritten
# letters"). "Merge" leaves out the lower-case letters that look like their capitals: c i j k l m o p s u v w x y z.
BY_CLASS = DIGITS + UPPER + LOWER  # 62
BY_MERGE = DIGITS + UPPER + "abdefghnqrt"  # 47
VIN = "".join(c for c in DIGITS + UPPER if c not in "IOQ")  # 33, ISO 3779

NATIVE_ALPHABET = "classes"  # the model's own labels, unfolded
DEFAULT_ALPHABET = "alnum"
ALPHABETS = {"alnum": DIGITS + UPPER, "digits": DIGITS, "letters": UPPER, "vin": VIN}
ALPHABET_NAMES = (*ALPHABETS, NATIVE_ALPHABET)

_SMALLEST_SUM = 1e-30  # keeps the renormalisation finite where a model rules out a whole alphabet


class UnknownAlphabet(ValueError):
    """The alphabet has no such name, or the model knows none of its characters."""


@dataclass(frozen=True)
class Fold:
    """How class probabilities become character probabilities for one alphabet."""

    alphabet: str
    characters: tuple[str, ...]
    matrix: npt.NDArray[np.float64]  # (classes, characters), entries 0 or 1

    def __call__(self, probabilities: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """Fold class probabilities (..., C) into character probabilities (..., K) that sum to 1."""
        folded = probabilities.astype(np.float64) @ self.matrix + _SMALLEST_SUM
        result: npt.NDArray[np.float64] = folded / folded.sum(axis=-1, keepdims=True)
        return result


def make_fold(classes: Sequence[str], alphabet: str) -> Fold:
    """Build the fold from a model's `classes` to `alphabet`, one of `ALPHABET_NAMES`.

    Characters that the model does not know are left out. Raises UnknownAlphabet if the name is unknown or nothing is
    left.
    """
    if alphabet == NATIVE_ALPHABET:
        return Fold(alphabet, tuple(classes), np.eye(len(classes)))
    if alphabet not in ALPHABETS:
        raise UnknownAlphabet(f"unknown alphabet '{alphabet[:60]}'; choose one of {', '.join(ALPHABET_NAMES)}")
    upper = [label.upper() for label in classes]
    characters = tuple(c for c in ALPHABETS[alphabet] if c in upper)
    if not characters:
        raise UnknownAlphabet(f"this model knows no character of '{alphabet}'; its classes are {' '.join(classes)}")
    matrix = np.array([[float(label == c) for c in characters] for label in upper])
    return Fold(alphabet, characters, matrix)

"""What the command lines share: exit codes, the types of their arguments, and how a fault reads."""

from __future__ import annotations

import argparse
from pathlib import Path

DONE, FAILED, WRONG_USE, NO_PICTURES, INCOMPLETE = 0, 1, 2, 3, 4


def at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is too few, at least 1")
    return value


def probability(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def not_empty(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    return text


def path(text: str) -> Path:
    return Path(not_empty(text))


def said(error: OSError) -> str:
    """What the system says, and of which file."""
    text = error.strerror or str(error)
    return f"{error.filename}: {text}" if error.filename else text

"""Where a command finds its data: the folder that its argument names, else the variable EMNIST_ROOT."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any


def default_root() -> Path | None:
    """The folder that EMNIST_ROOT names."""
    return _folder(os.environ.get("EMNIST_ROOT", ""))


def add_root(parser: argparse.ArgumentParser, help_text: str, name: str = "--emnist-root", **options: Any) -> None:
    """Give a command its argument for the folder of the data, a Path; None where neither it nor EMNIST_ROOT names
    one.
    """
    parser.add_argument(name, type=_folder, default=default_root(), help=help_text, **options)


def _folder(text: str) -> Path | None:
    return Path(text) if text else None  # the Makefile sets EMNIST_ROOT to nothing where you give it none

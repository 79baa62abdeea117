"""What is made once and kept on disk, below the user's cache folder."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from handlers.pictures import decoding, framing, pipeline, polarity, shapes

PREPROCESSING = (decoding, polarity, shapes, framing, pipeline)  # modules that decide what a picture becomes


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "emnist"


def source_code(modules: Iterable[ModuleType]) -> bytes:
    """The modules' source, for the key of what they made."""
    return b"".join(Path(str(module.__file__)).read_bytes() for module in modules)

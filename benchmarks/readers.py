"""This project's model beside what a user would take instead, Tesseract and RapidOCR, on the same pictures, in one run.

    python -m benchmarks.readers --model MODEL.pt --emnist-root DIR [--pictures 400]

Every reader is given the same PNG files, on one core, and answers one character of 0-9 A-Z; lower case counts as upper
case. Tesseract 5 (a program of the system) treats each picture as a single character (--psm 10) of a whitelist. Of
RapidOCR, the PP-OCRv4 models for ONNX Runtime, only the recogniser is used: the picture is the line of text.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
import torch

from handlers.alphabets import DEFAULT_ALPHABET, make_fold
from handlers.recognizer import ModelError, Recognizer, read
from training.data import DataError, add_root, load_emnist
from training.degrade.styles import USERS
from training.evaluation.robustness import SEED, encode, prepare_all

STYLES = (
    "enlarged",
    "jpeg",
    "box_enlarged",
    "paper_shadow",
    "noise",
    "one_bit",
    "thin_pen",
    "marker",
    "small_or_corner",
    "canvas_alpha",
)
PICTURES = 400  # a style
TESSERACT_TIMEOUT_S = 1200
WHITELIST = string.digits + string.ascii_letters

Reader: TypeAlias = Callable[[Sequence[bytes]], list[str]]  # PNG files -> a character each, or ""


def first_character(text: str) -> str:
    """The first letter or digit of a text, in upper case; "" if there is none."""
    return next((c.upper() for c in text if c in WHITELIST), "")


def our_reader(model: Path) -> Reader:
    recognizer = Recognizer(model)
    fold = recognizer.fold(DEFAULT_ALPHABET)

    def answer(files: Sequence[bytes]) -> list[str]:
        prepared, refused = prepare_all(files, recognizer.input_size)
        return [
            "" if no else read(row, fold).character
            for row, no in zip(recognizer.probabilities(prepared), refused, strict=True)
        ]

    return answer


def tesseract_reader() -> Reader:
    """One process for all pictures, which are listed in a file; pages come back separated by form feeds."""

    def answer(files: Sequence[bytes]) -> list[str]:
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / f"{number:05}.png" for number in range(len(files))]
            for path, file in zip(paths, files, strict=True):
                path.write_bytes(file)
            listed = Path(folder) / "list.txt"
            listed.write_text("".join(f"{path}\n" for path in paths))
            command = ["tesseract", str(listed), "stdout", "--psm", "10", "-c", f"tessedit_char_whitelist={WHITELIST}"]
            environment = os.environ | {"OMP_THREAD_LIMIT": "1"}
            done = subprocess.run(
                command, capture_output=True, text=True, env=environment, timeout=TESSERACT_TIMEOUT_S, check=True
            )
        pages = done.stdout.split("\f")[: len(files)]
        return [first_character(page) for page in pages] + [""] * (len(files) - len(pages))

    return answer


def rapidocr_reader() -> Reader:
    from rapidocr_onnxruntime import RapidOCR  # noqa: PLC0415  only the environment of `make compare` has it

    engine = RapidOCR(intra_op_num_threads=1, inter_op_num_threads=1, print_verbose=False)

    def answer(files: Sequence[bytes]) -> list[str]:
        results = [engine(file, use_det=False, use_cls=False, use_rec=True)[0] for file in files]
        return [first_character(str(result[0][0])) if result else "" for result in results]

    return answer


def compare(readers: dict[str, Reader], emnist_root: Path, pictures: int) -> str:
    """A Markdown table: for each style, each reader's accuracy and milliseconds a picture."""
    data = load_emnist(emnist_root, "balanced", "test")
    chosen = np.sort(np.random.default_rng(SEED).permutation(len(data))[:pictures])
    images = data.images.numpy()[chosen]
    fold = make_fold(data.classes, DEFAULT_ALPHABET)
    truth = [fold.characters[i] for i in fold.matrix.argmax(axis=1)[data.labels.numpy()[chosen]]]
    lines = [
        "| style | n |" + "".join(f" {name} | ms |" for name in readers),
        "| --- | ---: |" + " ---: | ---: |" * len(readers),
    ]
    sums = dict.fromkeys(readers, 0.0)
    for number, style in enumerate(STYLES):
        rng = np.random.default_rng([SEED, number])
        files = [encode(USERS[style](image, rng)) for image in images]
        cells = ""
        for name, reader in readers.items():
            started = time.perf_counter()
            answers = reader(files)
            milliseconds = 1000 * (time.perf_counter() - started) / len(files)
            accuracy = float(np.mean([a == t for a, t in zip(answers, truth, strict=True)]))
            sums[name] += accuracy
            cells += f" {100 * accuracy:.1f} % | {milliseconds:.1f} |"
        lines.append(f"| {style} | {len(files)} |{cells}")
        print(lines[-1], file=sys.stderr, flush=True)
    lines.append("| **mean** | |" + "".join(f" **{100 * total / len(STYLES):.1f} %** | |" for total in sums.values()))
    worst = math.sqrt(0.25 / len(images))
    return "\n".join([*lines, "", f"Standard errors are {100 * worst:.1f} points at most."])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.readers", description="Compare the model with Tesseract and RapidOCR."
    )
    parser.add_argument("--model", type=Path, default=Path("serving/models/emnist.pt"))
    add_root(parser, "folder that holds EMNIST/raw")
    parser.add_argument("--pictures", type=int, default=PICTURES, help="a style; default: %(default)s")
    arguments = parser.parse_args(argv)
    if arguments.emnist_root is None:
        parser.error("give --emnist-root (or EMNIST_ROOT), the folder that holds EMNIST/raw")
    if arguments.pictures < 1:
        parser.error("--pictures must be 1 or more")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        if shutil.which("tesseract") is None:
            raise DataError("Tesseract is not installed: `apt-get install tesseract-ocr`")
        readers = {
            "this project": our_reader(arguments.model),
            "Tesseract 5": tesseract_reader(),
            "RapidOCR": rapidocr_reader(),
        }
        print(compare(readers, arguments.emnist_root, arguments.pictures))
    except (DataError, ModelError, ImportError, OSError, subprocess.SubprocessError) as error:
        print(f"readers: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

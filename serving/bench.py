"""How fast the parts are, each beside its limit, measured in turn within one run.

python -m serving.bench [--model serving/models/emnist.pt] [--pictures 4000]
"""

from __future__ import annotations

import argparse
import io
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from handlers.framing import SIZE
from handlers.picture import decode
from handlers.preprocessing import read_image
from handlers.protocol import answer_rows
from handlers.recognizer import ModelError, Recognizer
from serving.package import DEFAULT_MODEL
from serving.pictures import CHUNK, Chunk, cores, decode_all, decoders
from serving.rows import CHUNKS_AHEAD, Scorer, score_all

SAMPLE = Path(__file__).resolve().parent / "samples" / "3_clean.png"
ROUNDS = 5  # the figure is the median of so many
SINGLE_CALLS = 200  # in a round


def milliseconds(call: Callable[[], object], calls: int = SINGLE_CALLS) -> float:
    """Median of ROUNDS rounds, milliseconds a call."""
    call()
    rounds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(calls):
            call()
        rounds.append(1000 * (time.perf_counter() - started) / calls)
    return statistics.median(rounds)


def photo(side: int) -> bytes:
    """The sample as a JPEG photograph: dark on grained paper, with a shadow across it."""
    glyph = np.asarray(Image.open(SAMPLE).convert("L").resize((side, side), Image.Resampling.BICUBIC)) / 255
    light = np.linspace(230, 130, side)[None, :] + np.random.default_rng(0).normal(0, 3, (side, side))
    stream = io.BytesIO()
    Image.fromarray(np.clip(light * (1 - 0.75 * glyph), 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=85)
    return stream.getvalue()


def one_picture(recognizer: Recognizer) -> None:
    """Print what one picture costs on one core, part by part."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    image = np.array(Image.open(SAMPLE))
    net = milliseconds(lambda: recognizer.probabilities(image[None]))
    batch = np.repeat(image[None], CHUNK, axis=0)
    net_in_batch = milliseconds(lambda: recognizer.probabilities(batch), SINGLE_CALLS // CHUNK) / CHUNK
    print(f"network alone, one picture           {net:8.3f} ms")
    print(f"network alone, a picture of {CHUNK:3d}      {net_in_batch:8.3f} ms")
    for name, data in (("28-pixel PNG", SAMPLE.read_bytes()), ("400-pixel photo", photo(400))):
        decoded = milliseconds(partial(decode, data))
        prepared = milliseconds(partial(read_image, data))
        whole = milliseconds(partial(answer_rows, recognizer, [{"body": data}]))
        print(f"{name + ': prepared':<36} {prepared:8.3f} ms   of which decoded {decoded:.3f}")
        print(f"{name + ': bytes to JSON':<36} {whole:8.3f} ms   preparation + network / this = {(prepared + net) / whole:.2f}")


def whole_folder(recognizer: Recognizer, name: str, data: bytes, count: int) -> None:
    """Print the batch program's speed beside that of decoding alone and the network alone, on all cores."""
    chunks = [Chunk([""] * CHUNK, np.repeat(read_image(data)[None], CHUNK, axis=0), [""] * CHUNK)] * (count // CHUNK)
    with tempfile.TemporaryDirectory() as folder, decoders(cores()) as pool:
        paths = [f"{folder}/{number:06d}" for number in range(count)]
        for path in paths:
            Path(path).write_bytes(data)
        scorer = Scorer(recognizer, pool, cores(), "alnum", 0.0)
        parts: dict[str, Callable[[], object]] = {
            "decode": lambda: sum(1 for _ in decode_all(paths, Path(folder), SIZE, pool, CHUNKS_AHEAD * cores())),
            "network": lambda: sum(1 for _ in score_all(recognizer, chunks, cores())),
            "batch": lambda: sum(1 for _ in scorer.rows(paths, Path(folder))),
        }
        speeds: dict[str, list[float]] = {part: [] for part in parts}
        for _ in range(ROUNDS):
            for part, call in parts.items():
                started = time.perf_counter()
                call()
                speeds[part].append(count / (time.perf_counter() - started))
    ratio = statistics.median(b / min(d, n) for b, d, n in zip(speeds["batch"], speeds["decode"], speeds["network"], strict=True))
    decode_s, network_s, batch_s = (statistics.median(values) for values in speeds.values())
    print(f"{name:<20}{decode_s:>12,.0f}{network_s:>12,.0f}{batch_s:>12,.0f}{ratio:>12.2f}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m serving.bench", description="Time the parts beside their limits.")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--pictures", type=int, default=64 * CHUNK, help="in the folder for the batch program")
    arguments = parser.parse_args(argv)
    try:
        recognizer = Recognizer(arguments.model)
    except ModelError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(f"{platform.machine()}, {cores()} cores, torch {torch.__version__}, OpenCV {cv2.__version__}, medians of {ROUNDS} rounds")
    print("\nOne core:")
    one_picture(recognizer)
    print(f"\nAll cores, {arguments.pictures} pictures, pictures/s:")
    print(f"{'':<20}{'decode':>12}{'network':>12}{'batch':>12}{'of limit':>12}")
    for name, data in (("28-pixel PNG", SAMPLE.read_bytes()), ("200-pixel JPEG", photo(200))):
        whole_folder(recognizer, name, data, arguments.pictures)
    return 0


if __name__ == "__main__":
    sys.exit(main())

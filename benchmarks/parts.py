"""How fast the parts are, each beside its limit, measured in turn within one run.

python -m benchmarks.parts [--model serving/models/emnist.pt] [--pictures 4000]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import subprocess
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

from handlers.pictures.decoding import decode
from handlers.pictures.framing import SIZE
from handlers.pictures.pipeline import read_image
from handlers.protocols.service import answer_rows
from handlers.recognizer import ModelError, Recognizer
from serving.batch.decoding import CHUNK, Chunk, cores, decode_all, decoders
from serving.batch.result import meta_path
from serving.batch.scoring import CHUNKS_AHEAD, Scorer, score_all
from serving.package import DEFAULT_MODEL

SAMPLE = Path(__file__).resolve().parents[1] / "serving" / "samples" / "3_clean.png"
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
        print(
            f"{name + ': bytes to JSON':<36} {whole:8.3f} ms   preparation + network / this ="
            f" {(prepared + net) / whole:.2f}"
        )


def pictures_in(folder: Path, data: bytes, count: int) -> list[str]:
    """Write the same picture `count` times."""
    paths = [f"{folder}/{number:06d}.picture.png" for number in range(count)]
    for path in paths:
        Path(path).write_bytes(data)
    return paths


def whole_folder(recognizer: Recognizer, name: str, data: bytes, count: int) -> None:
    """Print the batch program's speed beside that of decoding alone and the network alone, on all cores."""
    chunks = [Chunk([""] * CHUNK, np.repeat(read_image(data)[None], CHUNK, axis=0), [""] * CHUNK)] * (count // CHUNK)
    with tempfile.TemporaryDirectory() as folder, decoders(cores()) as pool:
        paths = pictures_in(Path(folder), data, count)
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
    rounds = list(zip(speeds["decode"], speeds["network"], speeds["batch"], strict=True))
    of_slower = statistics.median(batch / min(decoding, network) for decoding, network, batch in rounds)
    of_shared = statistics.median(batch * (1 / decoding + 1 / network) for decoding, network, batch in rounds)
    decoding, network, batch = (statistics.median(values) for values in zip(*rounds, strict=True))
    core_hours = cores() / batch * 1e6 / 3600
    print(
        f"{name:<20}{decoding:>12,.0f}{network:>12,.0f}{batch:>12,.0f}{of_slower:>12.2f}{of_shared:>12.2f}{core_hours:>20.2f}"
    )


def command(model: Path, folder: str, *arguments: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "serving.batch",
        "--model",
        str(model),
        "--input",
        folder,
        "--processes",
        "1",
        *arguments,
    ]


def in_shards(model: Path, data: bytes, count: int) -> None:
    """Print how much faster two shards are than one, each a process on a core of its own."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as results:
        pictures_in(Path(folder), data, count)
        seconds, walls = [], []
        for shards in (1, 2):
            output = Path(results) / f"{shards}.csv"
            started = time.perf_counter()
            processes = [
                subprocess.Popen(
                    [
                        "taskset",
                        "--cpu-list",
                        str(core),
                        *command(model, folder, "--output", str(output), f"--shards={shards}", f"--shard={shard}"),
                    ],
                    stderr=subprocess.DEVNULL,
                )
                for shard, core in enumerate(sorted(os.sched_getaffinity(0))[:shards])
            ]
            for process in processes:
                process.wait()
            walls.append(time.perf_counter() - started)
            seconds.append(json.loads(meta_path(output).read_bytes())["seconds"] / shards)
    print(
        f"two shards on two cores beside one on one: {seconds[0] / seconds[1]:.2f} times as fast; with the start,"
        f" {walls[0] / walls[1]:.2f}"
    )


def first_row(model: Path, data: bytes, count: int) -> None:
    """Print how long it takes from the start of the program to its first row."""
    with tempfile.TemporaryDirectory() as folder:
        pictures_in(Path(folder), data, count)
        waits = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            with subprocess.Popen(command(model, folder), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
                assert process.stdout is not None
                process.stdout.readline()  # the header
                process.stdout.readline()
                waits.append(time.perf_counter() - started)
                process.kill()
    print(f"start to the first row, of {count:,} pictures: {statistics.median(waits):.1f} s")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.parts", description="Time the parts beside their limits."
    )
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--pictures", type=int, default=64 * CHUNK, help="in the folder for the batch program")
    arguments = parser.parse_args(argv)
    try:
        recognizer = Recognizer(arguments.model)
    except ModelError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(
        f"{platform.machine()}, {cores()} cores, torch {torch.__version__}, OpenCV {cv2.__version__}, medians of"
        f" {ROUNDS} rounds"
    )
    print("\nOne core:")
    one_picture(recognizer)
    print("\nA folder on all cores, pictures/s:")
    print(
        f"{'':<20}{'decode':>12}{'network':>12}{'batch':>12}{'of slower':>12}{'of shared':>12}"
        f"{'core-hours/million':>20}"
    )
    small = SAMPLE.read_bytes()
    whole_folder(recognizer, "28-pixel PNG", small, arguments.pictures)
    whole_folder(recognizer, "200-pixel JPEG", photo(200), arguments.pictures)
    whole_folder(recognizer, "12-megapixel photo", photo(3464), arguments.pictures // 16)
    print()
    if cores() > 1:
        in_shards(arguments.model, photo(200), 4 * arguments.pictures)
    first_row(arguments.model, small, 20_000)
    return 0


if __name__ == "__main__":
    sys.exit(main())

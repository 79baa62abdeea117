"""The limit: the same handler, from a picture's bytes to its JSON, in processes that have the pictures already; no
HTTP, no queue.

    python -m benchmarks.peers.limit PICTURES   # a line a measurement: {"users": 64, "seconds": 8} in, its figures out

The users' pictures are dealt to the worker processes; each answers its share again and again, in batches as large as
there are. A user's time is that from the beginning of a share to the end of his batch.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections import Counter
from itertools import cycle, islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeAlias

import numpy as np

from benchmarks.peers.setting import Setting, load_model
from handlers.protocols.service import answer_rows
from handlers.recognizer import Recognizer

Pictures: TypeAlias = list[tuple[str, bytes]]  # the right character, and the file
# How often which character was asked for and which status and body were given.
Given: TypeAlias = Counter[tuple[str, int, bytes]]


def read_pictures(folder: Path) -> Pictures:
    return [(file.name[0], file.read_bytes()) for file in sorted(folder.iterdir())]


def answer_for(
    recognizer: Recognizer, pictures: Pictures, share: int, batch: int, seconds: float
) -> tuple[Given, list[float], float]:
    """Answer `share` users for so many seconds: the answers, how long each took, and the seconds until the last one."""
    given: Given = Counter()
    times: list[float] = []
    stream = cycle(pictures)
    began = time.perf_counter()
    while share and time.perf_counter() - began < seconds:
        started = time.perf_counter()
        for first in range(0, share, batch):
            asked = list(islice(stream, min(batch, share - first)))
            replies = answer_rows(recognizer, [{"body": picture} for _, picture in asked])
            times += [time.perf_counter() - started] * len(asked)
            given.update(
                (character, reply.status, reply.body) for (character, _), reply in zip(asked, replies, strict=True)
            )
    return given, times, time.perf_counter() - began


def summary(results: list[tuple[Given, list[float], float]]) -> dict[str, float]:
    """The workers' results in the words of bench_serving.py: right answers a second, percentiles in ms, the share of
    errors.
    """
    given = sum((result[0] for result in results), Counter())
    right = sum(
        n
        for (character, status, body), n in given.items()
        if status == 200 and json.loads(body)["character"] == character
    )
    percentiles = 1000 * np.percentile([seconds for result in results for seconds in result[1]], (50, 99))
    return {
        "requests": given.total(),
        "per_second": right / max(result[2] for result in results),
        "p50": float(percentiles[0]),
        "p99": float(percentiles[1]),
        "errors": 1 - right / given.total(),
        "generator_cores": 0.0,
    }


def work(pipe: Connection, folder: Path, batch: int) -> None:
    """One worker process: (share of the users, seconds) in, results out, until the pipe is closed."""
    recognizer, pictures = load_model(batch), read_pictures(folder)
    pipe.send("ready")
    while True:
        try:
            share, seconds = pipe.recv()
        except EOFError:
            return
        pipe.send(answer_for(recognizer, pictures, share, batch, seconds))


def main() -> None:
    setting = Setting.from_environment()
    context = multiprocessing.get_context("spawn")
    pipes = []
    for _ in range(setting.workers):
        pipe, theirs = context.Pipe()
        context.Process(target=work, args=(theirs, Path(sys.argv[1]), setting.batch), daemon=True).start()
        theirs.close()
        pipes.append(pipe)
    for pipe in pipes:
        pipe.recv()
    print("ready", flush=True)
    for line in sys.stdin:
        wanted = json.loads(line)
        for index, pipe in enumerate(pipes):
            pipe.send((len(range(index, wanted["users"], setting.workers)), wanted["seconds"]))
        print(json.dumps(summary([pipe.recv() for pipe in pipes])), flush=True)


if __name__ == "__main__":
    main()

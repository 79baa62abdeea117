"""The whole path once: package the model, serve it, send the samples, score the same folder, and compare row by row.

python -m serving.demo
"""

from __future__ import annotations

import argparse
import csv
import io
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from handlers.recognizer import ModelError
from serving.client.answers import ServiceError
from serving.client.client import Client
from serving.local import SAMPLES, Server, interruptible, running
from serving.package import DEFAULT_MODEL, package
from serving.service.processes import DEFAULT_MAR, ServerError

BATCH_TIMEOUT_S = 120
TOLERANCE = 1e-4  # between a confidence over REST and the same in the CSV, which has 4 decimals


def say(text: str) -> None:
    print(f"demo: {text}", file=sys.stderr, flush=True)


def send_samples(server: Server, samples: Sequence[Path]) -> dict[str, tuple[str, float]]:
    """Send each picture and print a row for it; returns character and confidence by file name. Raises ServiceError."""
    answers = {}
    print(f"{'picture':<24}{'answer':>7}{'confidence':>12}{'ms':>8}")
    with Client(server.url) as client:
        client.predict(samples[0].read_bytes())  # opens the connection
        for sample in samples:
            started = time.perf_counter()
            answer = client.predict(sample.read_bytes())
            milliseconds = 1000 * (time.perf_counter() - started)
            print(f"{sample.name:<24}{answer.character:>7}{answer.confidence:>12.4f}{milliseconds:>8.1f}", flush=True)
            answers[sample.name] = (answer.character, answer.confidence)
    return answers


def score_samples(model: Path) -> dict[str, tuple[str, float]]:
    """Run the batch program over the samples; character and confidence by file name. Raises RuntimeError."""
    command = [sys.executable, "-m", "serving.batch", "--model", str(model), "--input", str(SAMPLES)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, encoding="utf-8", timeout=BATCH_TIMEOUT_S, check=False
    )
    if done.returncode != 0:
        raise RuntimeError("the batch program failed; what it says is above")
    rows = csv.DictReader(io.StringIO(done.stdout, newline=""))
    return {Path(row["path"]).name: (row["character"], float(row["confidence"] or 0)) for row in rows}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m serving.demo", description="Package, serve, send the samples, score them, compare."
    )
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    model = parser.parse_args(argv).model
    samples = sorted(SAMPLES.iterdir())
    try:
        with interruptible():
            say(f"packaging {model} into {DEFAULT_MAR}")
            version = package(model, DEFAULT_MAR)
            say(f"model version {version}; starting TorchServe behind HAProxy and waiting for its workers")
            with running(DEFAULT_MAR) as server:
                say(f"ready at {server.url}; sending {len(samples)} pictures")
                over_rest = send_samples(server, samples)
            say("stopped the service; scoring the same folder with the batch program")
            in_csv = score_samples(model)
    except KeyboardInterrupt:
        say("interrupted; everything that was started is stopped")
        return 130
    except (ModelError, ServerError, ServiceError, RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        say(f"failed: {error}")
        return 1
    differing = sorted(n for n in over_rest.keys() | in_csv.keys() if not agree(over_rest.get(n), in_csv.get(n)))
    if differing:
        say(f"REST and CSV differ for: {', '.join(differing)}")
        return 1
    say(f"REST and CSV agree in all {len(samples)} rows")
    return 0


def agree(one: tuple[str, float] | None, other: tuple[str, float] | None) -> bool:
    return one is not None and other is not None and one[0] == other[0] and abs(one[1] - other[1]) <= TOLERANCE


if __name__ == "__main__":
    sys.exit(main())

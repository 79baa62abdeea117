"""Tables for benchmarks/README.md: a small grid of workers, batch size and delay, then 1 to 64 users with the setting
of the product.

    python benchmarks/sweep.py [--mar build/emnist.mar] [--seconds 20] [--users 1 8 32 64]

Each setting gets a service of its own (`python -m serving.local`) and locust beside it, on the same cores: the tables
also say how much of a core the generator took. Compare within one run only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LOCUSTFILE = "load_tests/locustfile.py"  # below ROOT: locust takes a comma in a path as the start of another
# Workers, batch size, delay in ms.
GRID = [
    (1, 1, 1),
    (1, 16, 1),
    (2, 1, 1),
    (2, 8, 1),
    (2, 16, 1),
    (2, 32, 1),
    (2, 16, 5),
]
GRID_USERS = (1, 32, 128)
STOP_TIMEOUT_S = 30
WARM_UP_S = 3
WORKERS_VARIABLE = "TS_DEFAULT_WORKERS_PER_MODEL"
COLUMNS = ("per_second", "p50", "p95", "p99", "errors", "generator_cores")


def with_setting(mar: Path, folder: Path, batch: int, delay: int) -> Path:
    """A copy of the archive whose model-config.yaml asks for another batch size and delay."""
    changed = folder / mar.name
    with zipfile.ZipFile(mar) as source, zipfile.ZipFile(changed, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "model-config.yaml":
                text = re.sub(r"batchSize: \d+", f"batchSize: {batch}", content.decode())
                content = re.sub(r"maxBatchDelay: \d+", f"maxBatchDelay: {delay}", text).encode()
            target.writestr(name, content)
    return changed


def free_port() -> int:
    """A port of the loopback address that nobody uses at this moment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def service_command(mar: Path, port: int) -> list[str]:
    return [sys.executable, "-m", "serving.local", "--mar", str(mar), "--port", str(port)]


@contextlib.contextmanager
def service(mar: Path, workers: int | None = None) -> Iterator[str]:
    """A service in a process of its own; yields its address."""
    port = free_port()
    command = service_command(mar, port)
    environment = os.environ | ({WORKERS_VARIABLE: str(workers)} if workers else {})
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            if not process.stdout or not process.stdout.readline():  # it prints a line when it is ready
                raise SystemExit(f"sweep: the service did not start; try: {' '.join(command)}")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(STOP_TIMEOUT_S)


def measure(url: str, users: int, seconds: float, warm_up_s: float = WARM_UP_S) -> dict[str, float]:
    """What locust measured with so many users, as locustfile.py's summary; before it, so many seconds that do not
    count.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "summary.json"
        command = [sys.executable, "-m", "locust", "--headless", "--only-summary", "-f", LOCUSTFILE, "--host", url]
        for duration in (warm_up_s, seconds) if warm_up_s else (seconds,):
            result.unlink(missing_ok=True)
            arguments = [*command, "--users", str(users), "--run-time", f"{duration:.0f}s"]
            environment = os.environ | {"SUMMARY": str(result)}
            done = subprocess.run(
                arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds + 60, check=False
            )
            if not result.exists():
                raise SystemExit(f"sweep: locust did not measure:\n{done.stderr}")
        measured: dict[str, float] = json.loads(result.read_text())
        return measured


def line(*cells: object) -> str:
    """A line of a Markdown table; small numbers with three digits."""
    texts = [
        f"{cell:.0f}"
        if isinstance(cell, float) and cell >= 100
        else f"{cell:.3g}"
        if isinstance(cell, float)
        else str(cell)
        for cell in cells
    ]
    return f"| {' | '.join(texts)} |"


def row(*cells: object) -> None:
    print(line(*cells), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure settings and numbers of users.")
    parser.add_argument("--mar", type=Path, default=Path("build/emnist.mar"))
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement; default: %(default)s")
    parser.add_argument("--users", type=int, nargs="+", default=[1, 8, 32, 64])
    arguments = parser.parse_args(argv)
    started = time.perf_counter()
    row(
        "workers",
        "batch size",
        "delay, ms",
        *(f"{users} users: {name}" for users in GRID_USERS for name in ("answers/s", "p50, ms", "p99, ms")),
    )
    row(*["---:"] * (3 + 3 * len(GRID_USERS)))
    for workers, batch, delay in GRID:
        with (
            tempfile.TemporaryDirectory() as folder,
            service(with_setting(arguments.mar, Path(folder), batch, delay), workers) as url,
        ):
            results = [measure(url, users, arguments.seconds) for users in GRID_USERS]
        row(workers, batch, delay, *(result[name] for result in results for name in ("per_second", "p50", "p99")))
    print()
    row("users", "answers/s", "p50, ms", "p95, ms", "p99, ms", "errors", "generator, cores")
    row(*["---:"] * (1 + len(COLUMNS)))
    with service(arguments.mar) as url:
        for users in arguments.users:
            result = measure(url, users, arguments.seconds)
            row(users, *(result[name] for name in COLUMNS))
    print(f"{time.perf_counter() - started:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

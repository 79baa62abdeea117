"""The servers that are compared, and the limit: how each is started with a setting, and how load measures it."""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.peers.setting import PATH, Setting
from benchmarks.programs import ROOT, StartError, answers_right, program, wait_until
from benchmarks.sweep import WORKERS_VARIABLE, free_port, service_command, with_setting
from serving.local import SAMPLES

PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
USERS = (1, 8, 64)
MOST = max(USERS)
WARM_UP_S = 5.0
SCRIPT = Path(__file__).resolve().parent / "wrk.lua"
ANSWER_TIMEOUT_S = 35  # longer than every deadline of the service
OURS, LIMIT, BENTOML = "ours", "the limit", "BentoML"
NO_DELAY = (BENTOML,)  # chooses its delay by itself

# Requests, right answers per_second, p50 and p99 in ms, errors (a share), generator_cores.
Figures = Mapping[str, float]
Measure = Callable[[int, float], Figures]  # of so many users, for so many seconds


@dataclass(frozen=True)
class Plan:
    """What is measured, and for how long."""

    model: Path
    folder: Path  # for what lives as long as the run
    names: tuple[str, ...]
    grid: tuple[Setting, ...]
    seconds: float
    tuning_seconds: float
    rounds: int


@dataclass
class Results:
    """Of one contender: for each setting right answers a second or why there are none, then what each round gave."""

    tuning: dict[Setting, float | str] = field(default_factory=dict)
    chosen: Setting | None = None
    # A round's number: figures such as "64 p99", "memory", "start".
    rounds: dict[int, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Running:
    """A contender that answers."""

    pid: int
    start_s: float  # from the start of its program to its first right answer
    measure: Measure
    url: str = ""  # where it takes pictures, if it does


def command(name: str, setting: Setting, plan: Plan, port: int) -> tuple[list[str], dict[str, str]]:
    """The command line of a server, and its environment variables."""
    variables = setting.to_environment(plan.model)
    if name == OURS:
        folder = plan.folder / f"{setting.batch}-{setting.delay_ms}"
        folder.mkdir(exist_ok=True)
        mar = with_setting(plan.folder / "emnist.mar", folder, setting.batch, setting.delay_ms)
        return service_command(mar, port), {WORKERS_VARIABLE: str(setting.workers)}
    address = ["--host", "127.0.0.1", "--port", str(port)]
    arguments = {
        "FastAPI": [
            "uvicorn",
            "--factory",
            "benchmarks.peers.fastapi_app:make_app",
            f"--workers={setting.workers}",
            "--no-access-log",
            *address,
        ],
        "LitServe": ["benchmarks.peers.litserve_app", str(port)],
        BENTOML: ["bentoml", "serve", "benchmarks.peers.bentoml_app:Characters", *address],
    }
    return [str(PEERS_PYTHON), "-m", *arguments[name]], variables | {
        "BENTOML_DO_NOT_TRACK": "true",
        "BENTOML_HOME": str(plan.folder / "bentoml"),
    }


SERVERS = (OURS, "FastAPI", "LitServe", BENTOML)


@contextlib.contextmanager
def running(name: str, setting: Setting, plan: Plan) -> Iterator[Running]:
    """A contender, once it answers right. Raises StartError."""
    log, started = plan.folder / "log", time.perf_counter()
    if name == LIMIT:
        words = [sys.executable, "-m", "benchmarks.peers.limit", str(SAMPLES)]
        with program(words, setting.to_environment(plan.model), log, talks=True) as process:
            wait_until(process, log, lambda: bool(process.stdout and process.stdout.readline()))
            yield Running(process.pid, time.perf_counter() - started, partial(ask, process))
        return
    port = free_port()
    host, sample = f"http://127.0.0.1:{port}", min(SAMPLES.iterdir())
    if name != OURS and not PEERS_PYTHON.exists():
        raise StartError(f"there is no {PEERS_PYTHON.relative_to(ROOT)}; `make bench-serving` makes it")
    words, variables = command(name, setting, plan, port)
    started = time.perf_counter()
    with program(words, variables, log) as process:
        wait_until(process, log, lambda: answers_right(host + PATH, sample.read_bytes(), sample.name[0]))
        yield Running(process.pid, time.perf_counter() - started, partial(load, host + PATH), host + PATH)


def load(url: str, users: int, seconds: float) -> Figures:
    """What wrk measured with so many users. Raises StartError."""
    wrk = shutil.which("wrk")
    if not wrk:
        raise StartError("wrk is missing; Debian and Ubuntu have it: apt-get install wrk")
    command = [
        wrk,
        "--threads=1",
        f"--connections={users}",
        f"--duration={max(1, round(seconds))}s",
        f"--timeout={ANSWER_TIMEOUT_S}s",
    ]
    command += [f"--script={SCRIPT}", url, "--", *map(str, sorted(SAMPLES.iterdir()))]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 2 * ANSWER_TIMEOUT_S, check=False)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - started
    if done.returncode:
        raise StartError(f"wrk: {done.stderr.strip()}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return figures | {"errors": 1 - figures["right"] / max(1, figures["requests"]), "generator_cores": cpu / wall}


def ask(process: subprocess.Popen[str], users: int, seconds: float) -> Figures:
    """What the limit's program measured."""
    assert process.stdin is not None
    assert process.stdout is not None
    print(json.dumps({"users": users, "seconds": seconds}), file=process.stdin, flush=True)
    answer = process.stdout.readline()
    if not answer:
        raise StartError("it ended while it was measured")
    figures: Figures = json.loads(answer)
    return figures

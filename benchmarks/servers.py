"""This project's service beside FastAPI, LitServe and BentoML, and beside the limit: the same handler without any
service.

    python -m benchmarks.servers [--seconds 8] [--rounds 3] [--only ours FastAPI] [--output build/bench-serving.md]

All have the same model, cores, pictures and load generator, and are tuned over the same grid of worker processes, batch
size and delay. The generator is wrk (wrk.lua checks every answer), for it shares these cores: locust takes eight times
as much of them, which would be measured instead of the servers. The best setting of each, by right answers a second of
64 users, is then measured in rounds, in each of which every one has its turn: timings vary here, and what is compared
should vary together.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path

from benchmarks.peers.setting import PATH, Setting
from benchmarks.programs import ROOT, StartError, answers_right, memory_mib, program, wait_until
from benchmarks.sweep import WORKERS_VARIABLE, free_port, line, service_command, with_setting
from serving.batch.decoding import cores
from serving.local import SAMPLES, interruptible
from serving.package import DEFAULT_MODEL, package

PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
USERS = (1, 8, 64)
MOST = max(USERS)
TUNING_SECONDS = 4.0
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


def tune(name: str, plan: Plan) -> Results:
    """Right answers a second of every setting, and the best one."""
    results = Results()
    for setting in plan.grid:
        if (setting.batch == 1 or name in NO_DELAY) and setting.delay_ms != plan.grid[0].delay_ms:
            continue  # a setting that differs in nothing
        try:
            with running(name, setting, plan) as contender:
                contender.measure(MOST, WARM_UP_S)
                results.tuning[setting] = contender.measure(MOST, plan.tuning_seconds)["per_second"]
        except StartError as error:
            results.tuning[setting] = str(error)
        note(
            f"{name}, {setting.workers} workers, batches of {setting.batch}, {setting.delay_ms} ms:"
            f" {shown(results.tuning[setting])}"
        )
    speeds = {setting: speed for setting, speed in results.tuning.items() if isinstance(speed, float)}
    results.chosen = max(speeds, key=speeds.__getitem__) if speeds else None
    return results


def one_round(name: str, setting: Setting, plan: Plan) -> dict[str, float]:
    """Start a contender, warm it up, and measure each number of users. Raises StartError."""
    with running(name, setting, plan) as contender:
        contender.measure(MOST, WARM_UP_S)
        figures = {"start": contender.start_s, "memory": memory_mib(contender.pid), "errors": 0.0, "requests": 0.0}
        for users in USERS:
            measured = contender.measure(users, plan.seconds)
            figures |= {f"{users} {what}": measured[what] for what in ("per_second", "p50", "p99", "generator_cores")}
            figures["requests"] += measured["requests"]
            figures["errors"] += round(measured["requests"] * measured["errors"])
            figures["memory"] = max(figures["memory"], memory_mib(contender.pid))  # not while it is timed
    return figures


def compare(plan: Plan) -> dict[str, Results]:
    """Tune every contender, then measure them in turn, round after round."""
    everything = {name: tune(name, plan) for name in plan.names}
    ours = everything[OURS].chosen if OURS in everything else None
    everything[LIMIT] = Results(chosen=ours or plan.grid[-1])  # with the processes and batches of ours
    for number in range(plan.rounds):
        for name, results in everything.items():
            if results.chosen is None:
                continue
            try:
                results.rounds[number] = one_round(name, results.chosen, plan)
                note(f"round {number + 1}, {name}: {results.rounds[number][f'{MOST} per_second']:.0f}/s")
            except StartError as error:
                note(f"round {number + 1}, {name}: {error}")
    return everything


def shown(value: float | str) -> str:
    """A figure with a sensible number of digits, or the words that stand in for it."""
    return value if isinstance(value, str) else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def spread(values: Sequence[float]) -> str:
    """Median, and smallest to largest."""
    if not values:
        return "-"
    low, middle, high = (shown(value) for value in (min(values), statistics.median(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


def comparison(everything: Mapping[str, Results]) -> list[str]:
    """The table of the contenders, a line each."""
    times = [f"{users} user{'s' * (users > 1)}: {p}, ms" for users in USERS for p in ("p50", "p99")]
    columns = ["", "workers x batch, delay", f"{MOST} users: answers/s", "of the limit", "of ours", *times]
    columns += ["memory, MiB", "start, s", "errors", "generator, cores"]
    lines = [line(*columns), line("---", "---", *["---:"] * (len(columns) - 2))]
    for name, results in everything.items():
        if not results.rounds:
            why = next((str(value) for value in results.tuning.values() if isinstance(value, str)), "it did not start")
            lines.append(line(name, why.replace("|", "/"), *["-"] * (len(columns) - 2)))
            continue
        rounds = results.rounds.values()
        ratios = [spread(relative(results, everything.get(other))) for other in (LIMIT, OURS)]
        wanted = [f"{users} {p}" for users in USERS for p in ("p50", "p99")] + ["memory", "start"]
        cells = [spread([figures[what] for figures in rounds]) for what in wanted]
        errors = (
            f"{sum(figures['errors'] for figures in rounds):.0f} of"
            f" {sum(figures['requests'] for figures in rounds):,.0f}"
        )
        generator = "-" if name == LIMIT else spread([figures[f"{MOST} generator_cores"] for figures in rounds])
        speed = spread([figures[f"{MOST} per_second"] for figures in rounds])
        lines.append(line(name, words_of(name, results.chosen), speed, *ratios, *cells, errors, generator))
    return lines


def relative(results: Results, other: Results | None) -> list[float]:
    """Answers a second as a share of another contender's, in each round that both have."""
    what = f"{MOST} per_second"
    rounds = other.rounds if other else {}
    return [
        figures[what] / rounds[number][what]
        for number, figures in results.rounds.items()
        if number in rounds and rounds[number][what]
    ]


def words_of(name: str, setting: Setting | None) -> str:
    """A setting in a table's cell."""
    if setting is None:
        return "-"
    delay = (
        "" if setting.batch == 1 or name == LIMIT else ", own delay" if name in NO_DELAY else f", {setting.delay_ms} ms"
    )
    return f"{setting.workers} x {setting.batch}{delay}"


def tuning(everything: Mapping[str, Results]) -> list[str]:
    """The table of the grid: right answers a second of every setting, for each contender."""
    lines = [line("", "workers x batch, delay", f"{MOST} users: answers/s"), line("---", "---", "---:")]
    for name, results in everything.items():
        for setting, speed in results.tuning.items():
            text = shown(speed).replace("|", "/")
            lines.append(line(name, words_of(name, setting), f"**{text}**" if setting == results.chosen else text))
    return lines


def report(everything: Mapping[str, Results], plan: Plan) -> str:
    return "\n".join(
        [
            (
                f"{platform.machine()}, {cores()} cores that the load generator (wrk) shares; medians (smallest to"
                f" largest) of {plan.rounds} rounds"
            ),
            (
                f"of {plan.seconds:.0f} s for each number of users, the contenders in turn. Memory is the sum of the"
                " PSS of all processes, the highest"
            ),
            (
                "after any load; start is from the program's start to its first right answer; errors are all but the"
                " right character. The limit is"
            ),
            (
                "the same handler, in as many processes and batches of the same size as ours, with the pictures in"
                " memory and no generator beside it."
            ),
            f"Ratios are of the same round. Every contender has answered {MOST} users for {WARM_UP_S:.0f} s before.",
            "",
            *comparison(everything),
            "",
            f"How each was tuned ({plan.tuning_seconds:.0f} s a setting; the chosen one is bold):",
            "",
            *tuning(everything),
        ]
    )


def note(text: str) -> None:
    print(f"bench-serving: {text}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.servers", description="Compare the service with others."
    )
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--output", type=Path, default=Path("build/bench-serving.md"))
    parser.add_argument(
        "--only",
        nargs="+",
        choices=SERVERS,
        default=SERVERS,
        metavar="NAME",
        help=f"of {', '.join(SERVERS)}; the limit always runs",
    )
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement; default: %(default)s")
    parser.add_argument(
        "--tuning-seconds", type=float, default=TUNING_SECONDS, help="of each setting of the grid; default: %(default)s"
    )
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument(
        "--workers",
        type=int,
        nargs="+",
        default=sorted({1, cores()}),
        help="of the grid; default: 1, and as many as cores",
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 32], help="of the grid; default: %(default)s")
    parser.add_argument(
        "--delays", type=int, nargs="+", default=[1, 5], help="of the grid, in ms; default: %(default)s"
    )
    arguments = parser.parse_args(argv)
    grid = tuple(Setting(*values) for values in product(arguments.workers, arguments.batches, arguments.delays))
    began = time.perf_counter()
    try:
        with interruptible(), tempfile.TemporaryDirectory(prefix="bench-serving-") as folder:
            package(arguments.model, Path(folder) / "emnist.mar")
            names = tuple(name for name in SERVERS if name in arguments.only)
            plan = Plan(
                arguments.model,
                Path(folder),
                names,
                grid,
                arguments.seconds,
                arguments.tuning_seconds,
                arguments.rounds,
            )
            text = report(compare(plan), plan)
    except KeyboardInterrupt:
        note("stopped")
        return 130
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(text + "\n", encoding="utf-8")
    print(text)
    note(f"{time.perf_counter() - began:.0f} s; also in {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

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
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from benchmarks.contenders import LIMIT, MOST, NO_DELAY, OURS, SERVERS, USERS, WARM_UP_S, Plan, Results, running
from benchmarks.peers.setting import Setting
from benchmarks.programs import StartError, memory_mib
from benchmarks.server_tables import report, shown
from serving.batch.decoding import cores
from serving.local import interruptible
from serving.package import DEFAULT_MODEL, package

TUNING_SECONDS = 4.0


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

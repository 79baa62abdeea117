"""Users who send the sample pictures and check the answers, in a shape of load, with thresholds that end the run with
exit code 1.

    locust --headless -f load_tests/locustfile.py --host http://127.0.0.1:8080 --users 32 --run-time 60s --shape step

It speaks HTTP only and imports nothing of the project. A picture's right answer is the first character of its file
name.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from locust import FastHttpUser, LoadTestShape, constant, events, task

HERE = Path(__file__).resolve().parent
CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 35.0  # longer than every deadline of the service
USERS_PER_S = 100.0  # that come, where a shape adds users
STEPS = 4
SPIKE_SHARE = 0.2  # of the users are there before and after the spike
SHAPES = ("steady", "step", "spike")
OK, OVERLOADED = 200, 503
MEASURED = {"p50", "p95", "p99", "errors", "shed"}  # what thresholds can be given for
SHED = "shed"  # the name under which refused requests are counted

log = logging.getLogger(__name__)
_cpu_started = (0.0, 0.0)  # processor and wall-clock seconds at the start


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    parser.add_argument(
        "--shape",
        choices=SHAPES,
        default="steady",
        help="step: a quarter more at a time; spike: a fifth of the users, all, a fifth",
    )
    parser.add_argument(
        "--pictures",
        default=str(HERE.parent / "serving" / "samples"),
        help="folder of pictures, named after their character",
    )
    parser.add_argument("--path", default="/predictions/emnist", help="where pictures are sent")
    parser.add_argument(
        "--pause", type=float, default=0.0, help="seconds that a user waits between an answer and the next picture"
    )
    parser.add_argument("--thresholds", default=str(HERE / "thresholds.yaml"))


class Shape(LoadTestShape):
    """How many of --users there are at a time, until --run-time is over."""

    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        options = self.runner.environment.parsed_options
        users, seconds = options.num_users or 1, options.run_time or 60
        part = self.get_run_time() / seconds
        if part >= 1:
            return None
        if options.shape == "step":
            users = max(1, users * (int(part * STEPS) + 1) // STEPS)
        elif options.shape == "spike" and not 1 / 3 <= part < 2 / 3:
            users = max(1, int(users * SPIKE_SHARE))
        return users, USERS_PER_S


class Sender(FastHttpUser):
    """One connection, kept as long as the service keeps it; one picture after another, each answer checked."""

    connection_timeout = CONNECT_TIMEOUT_S
    network_timeout = ANSWER_TIMEOUT_S
    max_retries = 0
    pictures: list[tuple[str, bytes]] = []  # noqa: RUF012  the same for all users, read once

    def on_start(self) -> None:
        options = self.environment.parsed_options
        self.wait_time = constant(options.pause).__get__(self)
        self.path = options.path
        if not Sender.pictures:
            Sender.pictures = [(file.name[0], file.read_bytes()) for file in sorted(Path(options.pictures).iterdir())]
        self.next = id(self) % len(self.pictures)

    @task
    def send(self) -> None:
        expected, picture = self.pictures[self.next]
        self.next = (self.next + 1) % len(self.pictures)
        headers = {"Content-Type": "application/octet-stream"}
        with self.client.post(self.path, data=picture, headers=headers, name="answer", catch_response=True) as response:
            if (
                response.status_code == OVERLOADED
                and "Retry-After" in response.headers
                and b'"overloaded"' in (response.content or b"")
            ):
                response.request_meta["name"] = SHED
                response.success()
                return
            if response.status_code != OK or character_of(response.content) != expected:
                response.failure(f"{expected} expected; status {response.status_code}: {(response.text or '')[:120]}")


def character_of(body: bytes | None) -> str | None:
    """The character that an answer names, None if it is no answer."""
    try:
        return str(json.loads(body or b"")["character"])
    except (ValueError, LookupError, TypeError):
        return None


@events.init.add_listener
def check_options(environment: Any, **_: Any) -> None:
    """End at once where the run could not be judged at its end."""
    options = environment.parsed_options
    try:
        limits = yaml.safe_load(Path(options.thresholds).read_text(encoding="utf-8"))[options.shape]
        unknown = sorted(set(limits) - MEASURED)
        if unknown:
            raise ValueError(f"there is no figure '{unknown[0]}'; there are: {', '.join(sorted(MEASURED))}")
        if not any(Path(options.pictures).iterdir()):
            raise ValueError(f"no picture in {options.pictures}")
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError) as error:
        raise SystemExit(
            f"load test: {options.thresholds}, shape '{options.shape}', pictures {options.pictures}: {error}"
        ) from error


@events.test_start.add_listener
def note_cpu(**_: Any) -> None:
    global _cpu_started  # noqa: PLW0603  locust's listeners are functions
    _cpu_started = (time.process_time(), time.perf_counter())


def summary(environment: Any) -> dict[str, float]:
    """Right answers a second, percentiles of their times in ms, shares of errors and of shed requests, and the
    generator's cores.
    """
    answers = environment.stats.entries.get(("answer", "POST"))
    shed = environment.stats.entries.get((SHED, "POST"))
    answered = answers.num_requests if answers else 0
    failed = answers.num_failures if answers else 0
    shed_count = shed.num_requests if shed else 0
    everything = max(1, answered + shed_count)
    cpu, wall = time.process_time() - _cpu_started[0], time.perf_counter() - _cpu_started[1]
    result = {"requests": answered + shed_count, "per_second": (answered - failed) / wall if wall else 0.0}
    result |= {
        f"p{p}": float(answers.get_response_time_percentile(p / 100) or 0) if answers else 0.0 for p in (50, 95, 99)
    }
    return result | {
        "errors": failed / everything,
        "shed": shed_count / everything,
        "generator_cores": cpu / wall if wall else 0.0,
    }


@events.quitting.add_listener
def judge(environment: Any, **_: Any) -> None:
    options = environment.parsed_options
    limits = yaml.safe_load(Path(options.thresholds).read_text(encoding="utf-8"))[options.shape]
    measured = summary(environment)
    print(
        f"{options.shape}, {options.num_users} users: "
        + ", ".join(f"{name} {value:.4g}" for name, value in measured.items()),
        file=sys.stderr,
    )
    broken = [f"{name} {measured[name]:.4g} > {limit}" for name, limit in limits.items() if measured[name] > limit]
    if measured["requests"] == 0:
        broken.append("no request was answered")
    for line in broken:
        log.error("threshold broken: %s", line)
    environment.process_exit_code = 1 if broken else 0
    if os.environ.get("SUMMARY"):  # for a program that runs this one
        Path(os.environ["SUMMARY"]).write_text(json.dumps(measured), encoding="utf-8")

"""Runs inside a pod of the cluster, with nothing but Python's own library, and prints JSON.

python in_cluster.py load HOST PORT --users 8 --seconds 60 --every 0.1    users with one connection each, who check
every answer
python in_cluster.py slow HOST PORT --users 500 --seconds 60              clients that send ten bytes a second
python in_cluster.py reach HOST PORT [PORT ...]                            which ports take a connection
"""

import argparse
import asyncio
import contextlib
import json
import socket
import time
from collections import Counter, defaultdict
from pathlib import Path

ANSWER_TIMEOUT_S = 35.0
CONNECT_TIMEOUT_S = 3.0
FAILURES_TOLD = 40
STOP_POLL_S = 0.5
SLOW_BYTE_S = 0.1  # between two bytes of a slow client


def request(host, picture):
    head = (
        f"POST /predictions/emnist HTTP/1.1\r\nHost: {host}\r\nContent-Type:"
        f" application/octet-stream\r\nContent-Length: {len(picture)}\r\n\r\n"
    )
    return head.encode() + picture


async def response(reader):
    """Status, headers and body. Raises OSError, asyncio.IncompleteReadError."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    return int(lines[0].split()[1]), headers, await reader.readexactly(int(headers["content-length"]))


def judge(status, headers, body, expected):
    said = json.loads(body)
    if status == 200:
        return "right" if said["character"] == expected else "wrong"
    if status == 503 and said["error"]["code"] == "overloaded" and "retry-after" in headers:
        return "shed"
    return f"status {status} {said['error']['code']}"


class Record:
    """What all users saw."""

    def __init__(self, seconds):
        self.began = time.monotonic()
        self.until = self.began + seconds
        self.outcomes, self.versions = Counter(), Counter()
        self.seconds = defaultdict(list)  # by outcome
        # Seconds of right answers, by the second of the run in which they came.
        self.right_by_second = defaultdict(list)
        self.failures = []
        self.mixed_connections = 0  # those on which two versions of the model answered

    def note(self, outcome, seconds):
        self.outcomes[outcome] += 1
        self.seconds[outcome].append(seconds)
        at = time.monotonic() - self.began
        if outcome == "right":
            self.right_by_second[int(at)].append(seconds)
        elif outcome != "shed":
            self.failures.append((round(at, 2), outcome, round(seconds, 2)))

    def quantile(self, outcome, share):
        values = sorted(self.seconds[outcome])
        return values[int(share * len(values))] if values else None

    def summary(self):
        elapsed = time.monotonic() - self.began
        windows = {second: [len(values), max(values)] for second, values in sorted(self.right_by_second.items())}
        return {
            "outcomes": self.outcomes,
            "versions": self.versions,
            "mixed_connections": self.mixed_connections,
            "offered_per_second": sum(self.outcomes.values()) / elapsed,
            "per_second": self.outcomes["right"] / elapsed,
            "p50_s": self.quantile("right", 0.5),
            "p99_s": self.quantile("right", 0.99),
            "shed_p50_s": self.quantile("shed", 0.5),
            "shed_p99_s": self.quantile("shed", 0.99),
            "failures": self.failures[:FAILURES_TOLD],
            "windows": windows,  # second of the run -> right answers, the slowest in seconds
        }


async def user(number, options, pictures, record):
    """Sends by the clock: a late answer is followed at once by the next picture. Without --every, every answer is."""
    connection, seen = None, set()
    due = record.began + options.every * number / options.users
    while due < record.until and time.monotonic() < record.until:
        await asyncio.sleep(due - time.monotonic())
        due = due + options.every if options.every else time.monotonic()
        expected, picture = pictures[number % len(pictures)]
        number += 1
        started = time.monotonic()
        try:
            if connection is None:
                connection, seen = (
                    await asyncio.wait_for(asyncio.open_connection(options.host, options.port[0]), options.deadline),
                    set(),
                )
            reader, writer = connection
            writer.write(request(options.host, picture))
            status, headers, body = await asyncio.wait_for(response(reader), options.deadline)
            record.note(judge(status, headers, body, expected), time.monotonic() - started)
            version = headers.get("x-model-version", "none")
            record.versions[version] += 1
            if seen and version not in seen:
                record.mixed_connections += 1
            seen.add(version)
            if headers.get("connection", "").lower() == "close":
                writer.close()
                connection = None
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            record.note(f"broken: {type(error).__name__}", time.monotonic() - started)
            if connection is not None:
                connection[1].close()
            connection = None


async def load(options):
    pictures = [(path.name[0], path.read_bytes()) for path in sorted(options.samples.iterdir())]
    record = Record(options.seconds)
    options.host = socket.gethostbyname(options.host)  # once: a name server that is away is not what is tested
    users = asyncio.gather(*(user(number, options, pictures, record) for number in range(options.users)))
    while not users.done():
        await asyncio.wait({users}, timeout=STOP_POLL_S)
        if options.stop_file and options.stop_file.exists():
            record.until = 0
    users.result()
    return record.summary()


async def slow_client(number, options, until, outcomes):
    """A byte every SLOW_BYTE_S, of the headers or, every second client, of the body; then again."""
    whole = request(options.host, bytes(1000))
    quick = whole.index(b"\r\n\r\n") + 4 if number % 2 else 0
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.wait_for(
                asyncio.open_connection(options.host, options.port[0]), CONNECT_TIMEOUT_S
            )
            answer = asyncio.ensure_future(response(reader))
            try:
                writer.write(whole[:quick])
                for byte in whole[quick:]:
                    writer.write(bytes([byte]))
                    await asyncio.wait({answer}, timeout=SLOW_BYTE_S)
                    if answer.done() or time.monotonic() > until:
                        break
                if answer.done():
                    outcomes[f"status {answer.result()[0]}"] += 1
            except (OSError, asyncio.IncompleteReadError):
                outcomes["closed"] += 1
            finally:
                answer.cancel()
                writer.close()


async def slow(options):
    outcomes = Counter()
    until = time.monotonic() + options.seconds
    await asyncio.gather(*(slow_client(number, options, until, outcomes) for number in range(options.users)))
    return outcomes


async def reach(options):
    open_ports = []
    for port in options.port:
        with contextlib.suppress(OSError):
            socket.create_connection((options.host, port), CONNECT_TIMEOUT_S).close()
            open_ports.append(port)
    return open_ports


COMMANDS = {function.__name__: function for function in (load, slow, reach)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=sorted(COMMANDS))
    parser.add_argument("host")
    parser.add_argument("port", type=int, nargs="+")
    parser.add_argument("--users", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--every", type=float, default=0, help="seconds between two pictures of a user; 0: at once")
    parser.add_argument(
        "--deadline", type=float, default=ANSWER_TIMEOUT_S, help="seconds that a user waits for an answer"
    )
    parser.add_argument("--stop-file", type=Path, help="when it appears, the load ends")
    parser.add_argument("--samples", type=Path, default=Path("/app/serving/samples"))
    options = parser.parse_args()
    print(json.dumps(asyncio.run(COMMANDS[options.command](options))))


if __name__ == "__main__":
    main()

"""Runs inside a pod of the cluster, with nothing but Python's own library, and prints JSON.

python in_cluster.py load HOST PORT --users 8 --seconds 60 --every 0.1    users with one connection each, who check every answer
python in_cluster.py reach HOST PORT [PORT ...]                            which ports take a connection
"""

import argparse
import asyncio
import json
import socket
import time
from collections import Counter
from pathlib import Path

SAMPLES = Path("/app/serving/samples")
ANSWER_TIMEOUT_S = 35.0
CONNECT_TIMEOUT_S = 3.0


async def answer(reader, writer, host, picture):
    """Send a picture; returns status, headers and body. Raises OSError, asyncio.IncompleteReadError, TimeoutError."""
    head = f"POST /predictions/emnist HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/octet-stream\r\nContent-Length: {len(picture)}\r\n\r\n"
    writer.write(head.encode() + picture)
    lines = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), ANSWER_TIMEOUT_S)).decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    return int(lines[0].split()[1]), headers, await reader.readexactly(int(headers["content-length"]))


def judge(status, headers, body, expected):
    said = json.loads(body)
    if status == 200:
        return "right" if said["character"] == expected else "wrong"
    if status == 503 and said["error"]["code"] == "overloaded" and "retry-after" in headers:
        return "shed"
    return f"status {status}"


async def user(number, options, pictures, until, outcomes, seconds):
    """Sends by the clock: a late answer is followed at once by the next picture. Without --every, every answer is."""
    connection = None
    due = time.monotonic() + options.every * number / options.users
    while due < until and time.monotonic() < until:
        await asyncio.sleep(due - time.monotonic())
        due = due + options.every if options.every else time.monotonic()
        expected, picture = pictures[number % len(pictures)]
        number += 1
        started = time.monotonic()
        try:
            if connection is None:
                connection = await asyncio.wait_for(asyncio.open_connection(options.host, options.port[0]), ANSWER_TIMEOUT_S)
            status, headers, body = await answer(*connection, options.host, picture)
            outcomes[judge(status, headers, body, expected)] += 1
            if status == 200:
                seconds.append(time.monotonic() - started)
            if headers.get("connection", "").lower() == "close":
                connection[1].close()
                connection = None
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            outcomes[f"broken: {type(error).__name__}"] += 1
            connection = None


async def load(options):
    pictures = [(path.name[0], path.read_bytes()) for path in sorted(SAMPLES.iterdir())]
    outcomes, seconds = Counter(), []
    until = time.monotonic() + options.seconds
    await asyncio.gather(*(user(number, options, pictures, until, outcomes, seconds) for number in range(options.users)))
    seconds.sort()
    p99 = seconds[int(0.99 * len(seconds))] if seconds else None
    offered = sum(outcomes.values()) / options.seconds
    return {"outcomes": outcomes, "offered_per_second": offered, "per_second": outcomes["right"] / options.seconds, "p99_s": p99}


def reach(options):
    open_ports = []
    for port in options.port:
        try:
            socket.create_connection((options.host, port), CONNECT_TIMEOUT_S).close()
            open_ports.append(port)
        except OSError:
            pass
    return open_ports


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=("load", "reach"))
    parser.add_argument("host")
    parser.add_argument("port", type=int, nargs="+")
    parser.add_argument("--users", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--every", type=float, default=0, help="seconds between two pictures of a user; 0: at once")
    options = parser.parse_args()
    print(json.dumps(asyncio.run(load(options)) if options.command == "load" else reach(options)))


if __name__ == "__main__":
    main()

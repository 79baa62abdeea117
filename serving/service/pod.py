"""What runs in the containers of a pod: one process of the service in each, and the commands that probe it and end it.

    python -m serving.service.pod torchserve    become TorchServe's Java, which gets the container's signals
    python -m serving.service.pod edge          become HAProxy
    python -m serving.service.pod web           keep the page's gateway running
    python -m serving.service.pod started       exit 0 once all workers are READY: the startup probe
    python -m serving.service.pod alive         exit 0 while at least one worker is READY: TorchServe's liveness probe
    python -m serving.service.pod answers       exit 0 while the gateway answers: its liveness probe
    python -m serving.service.pod drain         send clients elsewhere, then wait for the last answers: the preStop hook

Settings come from the environment: TS_<KEY> for TorchServe, the names at the top of haproxy.cfg for HAProxy,
JAVA_OPTIONS and DRAIN_SECONDS.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from serving.service.processes import (
    DEFAULT_MAR,
    ServerError,
    haproxy_command,
    model_version,
    torchserve_command,
    torchserve_environment,
    web_command,
    worker_statuses,
    workers_ready,
)

MANAGEMENT_ADDRESS = "127.0.0.1:8081"
DEFAULT_ADMIN_SOCKET = "/tmp/haproxy.sock"
DEFAULT_DRAIN_S = "8"  # for Services to forget the pod, and for clients to have had one more answer
DEFAULT_SOCKETS = "/run/emnist"
SOCKET_TIMEOUT_S = 2
RESTART_S = 1.0  # from the end of a gateway to the next one
POLL_S = 0.2
UNITS_S = {"us": 1e-6, "ms": 1e-3, "": 1e-3, "s": 1, "m": 60, "h": 3600, "d": 86400}  # of HAProxy's times


def torchserve(mar: Path) -> int:
    version = model_version(mar)  # a missing or broken archive is said in one line, not in Java's words
    print(f"serving model {mar.stem}, version {version}", file=sys.stderr, flush=True)
    folder = Path(tempfile.gettempdir())
    command = torchserve_command(mar, folder)
    os.environ.update(torchserve_environment(folder))
    os.execvp(command[0], command)


def edge(mar: Path) -> int:
    drain_seconds()  # a value that is none is refused now, not when the pod ends
    os.environ["MODEL"] = mar.stem
    os.environ["MODEL_VERSION"] = model_version(mar)
    command = haproxy_command()
    os.execvp(command[0], command)


def web(mar: Path) -> int:
    """Start the gateway, and start it again when it ends by itself, until SIGTERM.

    Kubernetes counts every container of a pod: one that restarts takes the pod out of the Service, and its backoff may
    keep it out for minutes. A page that is broken must not do that to predictions.
    """
    told_to_end = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told_to_end.set())
    while not told_to_end.is_set():
        with subprocess.Popen(web_command(sockets(), mar.stem)) as gateway:
            while gateway.poll() is None and not told_to_end.wait(POLL_S):
                pass
            gateway.terminate()
        if not told_to_end.is_set():
            print(f"web: the gateway ended with exit code {gateway.returncode}; starting it again", file=sys.stderr)
            told_to_end.wait(RESTART_S)
    return 0


def answers(_mar: Path) -> int:
    with socket.socket(socket.AF_UNIX) as gateway:
        gateway.settimeout(SOCKET_TIMEOUT_S)
        gateway.connect(str(sockets() / "web.sock"))
        gateway.sendall(b"HEAD / HTTP/1.0\r\n\r\n")
        return 0 if b" 200 " in gateway.recv(65536) else 1


def sockets() -> Path:
    return Path(os.environ.get("SOCKETS", DEFAULT_SOCKETS))


def started(mar: Path) -> int:
    return 0 if workers_ready(MANAGEMENT_ADDRESS, mar.stem) else 1


def alive(mar: Path) -> int:
    return 0 if "READY" in worker_statuses(MANAGEMENT_ADDRESS, mar.stem) else 1


def drain(_mar: Path) -> int:
    """Let every answer say `Connection: close` for a while, then take no connection and wait for the last answers."""
    ask("set server draining/flag state maint")
    time.sleep(drain_seconds())
    ask("shutdown frontend edge")
    last = time.monotonic() + longest_answer_s()
    while requests_in_flight() and time.monotonic() < last:
        time.sleep(POLL_S)
    return 0


def longest_answer_s() -> float:
    """How long a request waits for its answer at most, by the settings that HAProxy runs with. Raises OSError."""
    lines = [ask(f"show env {name}") for name in ("QUEUE_TIMEOUT", "ANSWER_TIMEOUT")]
    return sum(seconds(line.strip().partition("=")[2]) for line in lines)


def seconds(time_of_haproxy: str) -> float:
    """Of "30s", "500ms" and the like. Raises ValueError."""
    unit = time_of_haproxy.lstrip("0123456789")
    if unit not in UNITS_S:
        raise ValueError(f"'{time_of_haproxy}' is no time for HAProxy")
    return int(time_of_haproxy.removesuffix(unit)) * UNITS_S[unit]


def requests_in_flight() -> int:
    """Requests that have begun and are not answered; connections that are idle do not count. Raises OSError."""
    edge_line = next(csv.DictReader(io.StringIO(ask("show stat edge 1 -1").removeprefix("# "))))
    return int(edge_line["h1_open_streams"])


def drain_seconds() -> float:
    """Raises ServerError."""
    text = os.environ.get("DRAIN_SECONDS", DEFAULT_DRAIN_S)
    try:
        return float(text)
    except ValueError as error:
        raise ServerError(f"DRAIN_SECONDS must be a number, not '{text}'") from error


def ask(command: str) -> str:
    """What HAProxy answers to a command on its admin socket. Raises OSError."""
    with socket.socket(socket.AF_UNIX) as admin:
        admin.settimeout(SOCKET_TIMEOUT_S)
        admin.connect(os.environ.get("ADMIN_SOCKET", DEFAULT_ADMIN_SOCKET))
        admin.sendall(f"{command}\n".encode())
        return b"".join(iter(lambda: admin.recv(65536), b"")).decode()


COMMANDS = {function.__name__: function for function in (torchserve, edge, web, started, alive, answers, drain)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m serving.service.pod",
        description="One process of the service, as the containers of a pod run it.",
    )
    parser.add_argument("command", choices=sorted(COMMANDS))
    parser.add_argument("--mar", type=Path, default=DEFAULT_MAR)
    arguments = parser.parse_args(argv)
    try:
        return COMMANDS[arguments.command](arguments.mar)
    except (ServerError, OSError) as error:
        print(f"{arguments.command}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

"""The service on this machine: TorchServe and the page's gateway behind HAProxy, waited for and stopped in order.

    python -m serving.local [--mar build/emnist.mar] [--port 8080]

Java is started directly: the `torchserve` command would leave it behind when it is stopped. HAProxy runs with the very
configuration that it has in a pod; it carries the query parameters that TorchServe alone would drop.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import requests

from serving.service.processes import (
    DEFAULT_MAR,
    REQUEST_TIMEOUT_S,
    ServerError,
    haproxy_command,
    model_version,
    torchserve_command,
    torchserve_environment,
    web_command,
    workers_ready,
)

HERE = Path(__file__).resolve().parent
SAMPLES = HERE / "samples"
LOOPBACK = "127.0.0.1"
START_TIMEOUT_S = 120
HARD_STOP_S = 5  # for answers in flight, when the service is stopped
STOP_TIMEOUT_S = 15
POLL_S = 0.1
LOG_LINES_KEPT = 200
LOG_LINES_ON_FAILURE = 20
LOAD_FAILED = ("Load model failed", "Auto recovery failed again")  # TorchServe's words in its log
# The last line of a worker's traceback, but not of TorchServe's own.
WORKERS_ERROR = re.compile(r"MODEL_LOG: ((?:\w+\.)*\w+(?:Error|Exception): (?!500 - ).*)")
LAST_WORDS_S = 1.0  # that a worker's error may come later in the log than TorchServe's word on it


class Server:
    """A running service; made by `running`. Addresses here: `url` for clients and the page, `probes_url` for
    Prometheus.
    """

    def __init__(self, mar: Path, folder: Path, host: str, ports: Sequence[int], log: IO[bytes]) -> None:
        version = model_version(mar)
        self.model = mar.stem
        self._folder = folder
        self._log = log
        self._log_end: deque[str] = deque(maxlen=LOG_LINES_KEPT)
        self._load_failed = False
        self._processes: list[subprocess.Popen[bytes]] = []
        self._readers: list[threading.Thread] = []
        self._resources = contextlib.ExitStack()
        reserved = self._resources.enter_context(reserved_ports(7))
        edge, probes, management, metrics, model_metrics, grpc_inference, grpc_management = reserved
        inference = folder / "torchserve.sock"
        ports = ports or [edge]
        self.management_address = f"{LOOPBACK}:{management}"
        self.url = f"http://{LOOPBACK}:{ports[0]}"
        self.probes_url = f"http://{LOOPBACK}:{probes}"
        self.admin_socket = folder / "haproxy.sock"
        torchserve = {
            "TEMP": str(folder),  # unpacked models and the workers' sockets
            "TMPDIR": str(folder),
            "LOG_LOCATION": str(folder),
            "METRICS_LOCATION": str(folder),
            "MODEL_METRICS_PORT": str(model_metrics),
            "TS_INFERENCE_ADDRESS": f"unix:{inference}",
            "TS_MANAGEMENT_ADDRESS": f"http://{self.management_address}",
            "TS_METRICS_ADDRESS": f"http://{LOOPBACK}:{metrics}",
            "TS_GRPC_INFERENCE_PORT": str(grpc_inference),
            "TS_GRPC_MANAGEMENT_PORT": str(grpc_management),
        }
        haproxy = {
            "EDGE_ADDRESS": ",".join(f"{host}:{port}" for port in ports),
            "PROBE_HOST": LOOPBACK,
            "PROBE_PORT": str(probes),
            "SOCKETS": str(folder),
            "MANAGEMENT_PORT": str(management),
            "MODEL_METRICS_PORT": str(model_metrics),
            "ADMIN_SOCKET": str(self.admin_socket),
            "HARD_STOP": f"{HARD_STOP_S}s",
            "MODEL": self.model,
            "MODEL_VERSION": version,
        }
        edge_command = haproxy_command()  # before anything runs, for it may refuse
        try:
            self._start("java", torchserve_command(mar, folder), torchserve | torchserve_environment(folder))
            self._start("web", web_command(folder, self.model), {"PYTHONPATH": str(HERE.parent)})
            self._start("haproxy", edge_command, haproxy)
        except BaseException:
            self.stop()
            raise

    def _start(self, name: str, command: list[str], variables: Mapping[str, str]) -> None:
        environment = dict(os.environ)
        environment.pop("PYTHONPATH", None)  # it would win over the code in the archive
        environment |= variables
        # A session of its own: Ctrl-C reaches this program alone, which then stops the server in order.
        process = subprocess.Popen(
            command,
            cwd=self._folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._processes.append(process)
        self._readers.append(
            threading.Thread(target=self._keep_log, args=(process,), name=f"log of {name}", daemon=True)
        )
        self._readers[-1].start()

    def _keep_log(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._log_end.append(line.decode(errors="replace").rstrip())
            self._load_failed = self._load_failed or any(words in self._log_end[-1] for words in LOAD_FAILED)
            self._log.write(line)
            self._log.flush()

    def wait_until_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return once every worker of the model is READY. Raises ServerError with the end of the log."""
        deadline = time.monotonic() + timeout_s
        while not self.ready():
            self.check_alive()
            if self._load_failed:  # TorchServe would try again for minutes
                time.sleep(LAST_WORDS_S)
                reasons = [found[1] for found in map(WORKERS_ERROR.search, list(self._log_end)) if found]
                raise ServerError(f"the model cannot be loaded: {reasons[-1] if reasons else self.log_end()}")
            if time.monotonic() > deadline:
                raise ServerError(f"the model's workers were not ready within {timeout_s:.0f} s:\n{self.log_end()}")
            time.sleep(POLL_S)

    def ready(self) -> bool:
        """Whether all of the model's workers are READY, the edge has seen it, and the page is there.

        TorchServe is asked as well, for HAProxy takes a server to be up until its first health checks have failed.
        """
        try:
            return workers_ready(self.management_address, self.model) and all(
                requests.get(self.url + path, timeout=REQUEST_TIMEOUT_S).ok for path in ("/ready", "/")
            )
        except requests.RequestException:
            return False

    def check_alive(self) -> None:
        """Raise ServerError if a process has ended."""
        for process in self._processes:
            if process.poll() is not None:
                name = Path(str(process.args[0])).name  # type: ignore[index]
                raise ServerError(f"{name} ended by itself with exit code {process.returncode}:\n{self.log_end()}")

    def log_end(self) -> str:
        return "\n".join(list(self._log_end)[-LOG_LINES_ON_FAILURE:])

    def stop(self) -> None:
        """End HAProxy once it has answered what it has, the gateway, then Java and its workers; what is left after a
        while is killed.
        """
        for process, number in reversed(
            list(zip(self._processes, (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1), strict=False))
        ):
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for reader in self._readers:
            reader.join(STOP_TIMEOUT_S)
        self._resources.close()


@contextlib.contextmanager
def running(mar: Path, *ports: int, host: str = LOOPBACK, log: IO[bytes] | None = None) -> Iterator[Server]:
    """A service of `mar`, READY, on `ports` or a free one of the address `host`; stopped at the end, come what may.

    What the processes print goes to `log`; without it, its end is kept for messages. Raises ServerError.
    """
    if not mar.is_file():
        raise ServerError(f"no {mar}; `make mar` packages it")
    for port in ports:
        if not _is_free(port):
            raise ServerError(f"port {port} is taken; choose another one: make serve PORT={port + 1}")
    with tempfile.TemporaryDirectory(prefix="emnist-") as folder, contextlib.ExitStack() as stack:
        server = Server(mar, Path(folder), host, ports, log or stack.enter_context(Path(os.devnull).open("wb")))
        try:
            server.wait_until_ready()
            yield server
        finally:
            server.stop()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM unwind the program as Ctrl-C does."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def reserved_ports(count: int) -> Iterator[list[int]]:
    """Free ports of the loopback address that nobody else is given while the body runs.

    On Linux a bound socket that does not listen keeps its port out of the kernel's choice, and a server that sets
    SO_REUSEADDR, as all of ours do, can still listen there. Elsewhere the ports are only free at first.
    """
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind((LOOPBACK, 0))
        ports = [s.getsockname()[1] for s in sockets]
        if sys.platform != "linux":
            stack.close()
        yield ports


def _is_free(port: int) -> bool:
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return s.connect_ex((LOOPBACK, port)) != 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m serving.local", description="Serve a .mar on this machine until Ctrl-C."
    )
    parser.add_argument("--mar", type=Path, default=DEFAULT_MAR)
    parser.add_argument(
        "--port", type=int, nargs="+", default=[8080], help="one port or several, all the same; default: 8080"
    )
    parser.add_argument(
        "--host",
        default=LOOPBACK,
        help="the address to listen on; 0.0.0.0 for all of this machine; default: %(default)s",
    )
    arguments = parser.parse_args(argv)
    os.environ.setdefault("LOG_LEVEL", "info")  # a line for each request
    sample = shlex.quote("@" + os.path.relpath(sorted(SAMPLES.iterdir())[0]))
    try:
        with interruptible():
            print(f"starting the service on port {arguments.port[0]} ...", file=sys.stderr)
            with running(arguments.mar, *arguments.port, host=arguments.host, log=sys.stderr.buffer) as server:
                print(f"the page: {server.url}", file=sys.stderr)
                print("ready; stop with Ctrl-C; in another terminal:", file=sys.stderr)
                url = f"'{server.url}/predictions/{server.model}?alphabet=alnum&top_k=3'"
                print(f"curl -H 'Content-Type: image/png' --data-binary {sample} {url}", flush=True)
                while True:
                    server.check_alive()
                    time.sleep(POLL_S)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 0
    except (ServerError, OSError) as error:
        print(f"serve: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

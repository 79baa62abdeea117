"""Programs that are compared: started, waited for until they answer, weighed, and stopped with all that they
started.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil
import requests

ROOT = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 30
REQUEST_TIMEOUT_S = 5
POLL_S = 0.05
MIB = 2**20


class StartError(Exception):
    """A program that did not become ready; the message holds the last line that it printed."""


@contextlib.contextmanager
def program(
    command: Sequence[str], variables: Mapping[str, str], log: Path, talks: bool = False
) -> Iterator[subprocess.Popen[str]]:
    """A program that prints into `log`; with `talks` its input and output are pipes. It is stopped at the end, and what
    it leaves is killed.
    """
    pipe = subprocess.PIPE if talks else None
    with log.open("w") as printed:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | variables,
            stdin=pipe or subprocess.DEVNULL,
            stdout=pipe or printed,
            stderr=printed,
            text=True,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        family = tree(process.pid)  # some start their workers in sessions of their own, or leave them behind
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        # The next one shall have the cores to itself.
        while any(alive(member) for member in family) and time.monotonic() < deadline:
            time.sleep(POLL_S)


def alive(process: psutil.Process) -> bool:
    """Whether a process still runs; one that has ended and that nobody has asked about does not."""
    try:
        return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def tree(pid: int) -> list[psutil.Process]:
    """A process and all that descend from it."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def memory_mib(pid: int) -> float:
    """Memory of a process and all that descend from it, in MiB: the sum of their PSS, where what is shared counts
    once.
    """
    total = 0
    for member in tree(pid):
        with contextlib.suppress(OSError):  # one that ended meanwhile
            rollup = Path(f"/proc/{member.pid}/smaps_rollup").read_text().splitlines()
            total += next((1024 * int(line.split()[1]) for line in rollup if line.startswith("Pss:")), 0)
    return total / MIB


def wait_until(process: subprocess.Popen[str], log: Path, ready: Callable[[], bool]) -> None:
    """Return once `ready` says so. Raises StartError when the process ended, or after START_TIMEOUT_S."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            words = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            what = (
                f"ended with exit code {process.returncode}"
                if process.returncode is not None
                else f"gave no right answer in {START_TIMEOUT_S} s"
            )
            raise StartError(f"{what}: {words[-1].strip() if words else 'without a word'}")
        time.sleep(POLL_S)


def answers_right(url: str, picture: bytes, character: str) -> bool:
    """Whether a picture that is sent to `url` is answered with its character."""
    try:
        response = requests.post(
            url, data=picture, headers={"Content-Type": "application/octet-stream"}, timeout=REQUEST_TIMEOUT_S
        )
        return bool(response.ok and response.json()["character"] == character)
    except (requests.RequestException, ValueError, LookupError, TypeError):
        return False

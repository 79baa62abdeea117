"""Watches a running service from beside it: its processes, their memory, and a client that is to notice nothing."""

from __future__ import annotations

import threading
import time

import psutil
import requests
from hostile_pictures import SAMPLES

TIMEOUT_S = 60
SAMPLE_S = 0.1
MB = 1 << 20


def java_of(server):
    folder = f"-Djava.io.tmpdir={server.admin_socket.parent}"
    return next(child for child in psutil.Process().children() if folder in child.cmdline())


class Watch:
    """Between entering and leaving: the highest memory of each of the service's processes, in MB, and what a neighbour
    is answered.
    """

    def __init__(self, server):
        self.url = server.url
        self.management = f"http://{server.management_address}/models/{server.model}"
        java = java_of(server)
        haproxy = next(
            child
            for child in psutil.Process().children()
            if child.environ().get("ADMIN_SOCKET") == str(server.admin_socket)
        )
        self.workers = java.children(recursive=True)
        self.processes = [haproxy, java, *self.workers]
        self.peak = [0.0] * len(self.processes)
        self.peak_of_torchserve = 0.0
        self.asked = 0
        self.worst_s = 0.0
        self.wrong = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._sample, self._ask)]

    def __enter__(self):
        self.before = self.memory()
        self.workers_before = self.said()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def memory(self):
        """Of HAProxy, Java and each worker, in MB; what several share is counted in parts."""
        return [process.memory_full_info().pss / MB for process in self.processes]

    def said(self):
        """What TorchServe says of its workers: their ids, process ids and states."""
        return [
            (w["id"], w["pid"], w["status"])
            for w in requests.get(self.management, timeout=TIMEOUT_S).json()[0]["workers"]
        ]

    def deaths(self):
        """Processes that ended, and workers that TorchServe has replaced."""
        return [p.pid for p in self.processes if not p.is_running()] + [
            w for w in self.said() if w not in self.workers_before
        ]

    def _sample(self):
        while not self._stop.wait(SAMPLE_S):
            now = self.memory()
            self.peak = [max(pair) for pair in zip(self.peak, now, strict=True)]
            self.peak_of_torchserve = max(self.peak_of_torchserve, sum(now[1:]))

    def _ask(self):
        with requests.Session() as session:
            while not self._stop.is_set():
                path = SAMPLES[self.asked % len(SAMPLES)]
                started = time.monotonic()
                answer = session.post(f"{self.url}/predictions/emnist", data=path.read_bytes(), timeout=TIMEOUT_S)
                self.worst_s = max(self.worst_s, time.monotonic() - started)
                self.asked += 1
                if answer.status_code != 200 or answer.json()["character"] != path.name[0]:
                    self.wrong.append((path.name, answer.status_code, answer.text[:200]))
                self._stop.wait(SAMPLE_S)

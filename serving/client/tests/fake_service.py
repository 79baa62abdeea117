"""A service of a few lines that answers as a test tells it, and counts."""

import contextlib
import json
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

VERSION = "0123456789ab"


def answer(character="A"):
    others = [{"character": "4", "confidence": 0.25}, {"character": "R", "confidence": 0.125}]
    return {
        "character": character,
        "ascii": ord(character),
        "confidence": 0.625,
        "alphabet": "alnum",
        "alternatives": others,
    }


def error(code, message="it is so"):
    return {"error": {"code": code, "message": message}}


@dataclass(frozen=True)
class Reply:
    status: int = 200
    body: object = field(default_factory=answer)  # bytes as they are, all else as JSON
    headers: dict = field(default_factory=dict)
    after_s: float = 0.0


OK = Reply()
BUSY = Reply(503, error("overloaded"), {"Retry-After": "2"})
RESET = "RESET"  # instead of an answer
STALL = "STALL"  # not even the picture is read


class Service(ThreadingHTTPServer):
    """Answers the first requests with `script`, all others with `then`: replies, or functions of the picture that make
    them.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *script, then=OK):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.then = list(script), then
        self.lock = threading.Lock()
        self.requests = []  # path, headers, body
        self.connections = self.in_flight = self.most_in_flight = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_):
        """A client that has gone is no news here."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet

    def setup(self):
        super().setup()
        with self.server.lock:
            self.server.connections += 1

    def do_POST(self):
        stalled = self.server.script[:1] == [STALL]
        body = b"" if stalled else self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            self.server.requests.append((self.path, self.headers, body))
            reply = self.server.script.pop(0) if self.server.script else self.server.then
            self.server.in_flight += 1
            self.server.most_in_flight = max(self.server.most_in_flight, self.server.in_flight)
        reply = reply(body) if callable(reply) else reply
        if isinstance(reply, Reply):
            time.sleep(reply.after_s)
        with self.server.lock:
            self.server.in_flight -= 1
        if stalled:
            time.sleep(0.5)
        if not isinstance(reply, Reply):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return
        content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        self.send_response(reply.status)
        for name, value in ({"X-Model-Version": VERSION, "Content-Length": str(len(content))} | reply.headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(*script, then=OK):
    with Service(*script, then=then) as service:
        thread = threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield service
        finally:
            service.shutdown()
            thread.join()

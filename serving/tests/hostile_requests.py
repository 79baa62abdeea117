"""Hostile requests, each made from a seed and a number alone, with what the service may answer.

python serving/tests/hostile_requests.py SEED NUMBER [URL]     tells about one, and sends it
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from urllib.parse import quote_from_bytes

from hostile_forms import (
    ANY_PICTURE,
    BAD,
    PREDICT,
    UNREAD,
    V1,
    V2,
    as_any_form,
    deep_json,
    http,
    multipart,
    sample,
    v1_instances,
    v2_tensor,
)
from hostile_pictures import cheap_bomb, damaged, heavy_bomb, junk, polyglot
from hostile_wire import Hostile, send

NOT_HERE = frozenset({400, 404, 405})
# of a request; beyond, HAProxy answers before all of it has come, and the reset of what still comes may take the answer
# along
HEAD_BYTES = 14_000
Maker = Callable[[random.Random], Hostile]


def query(rng: random.Random) -> Hostile:
    """Parameters that are not ours, not UTF-8, wrongly encoded or too long."""
    odd = rng.choice(
        [
            b"%",
            b"%zz",
            b"%f",
            b"\xff",
            b"%ff%fe",
            b"%00",
            b"%ed%a0%80",
            b"%c0%af",
            b"a" * 3000,
            b"a" * 9000,
            b"&" * 1000,
            b"a=1&" * 1400,
            b"=",
            b"{{7*7}}",
            quote_from_bytes(rng.randbytes(40)).encode(),
            b"'",
            b'"',
            b"<script>",
            b"..%2f",
            b"%0d%0aX-Evil:%201",
            b"+",
            b";",
            b"#frag",
        ]
    )
    name = rng.choice([b"alphabet", b"top_k", b"data", b"body", b"ALPHABET", b"x", odd])
    data = http(PREDICT + b"?" + name + b"=" + odd, sample(rng))
    return Hostile(data, BAD | {200, 422}, ours=False, may_close=len(data) > HEAD_BYTES)


def headers(rng: random.Random) -> Hostile:
    """Headers that are huge, many, not ASCII, or pretend to be the edge's own."""
    forged = [
        b"X-Protocol: v2",
        b"X-Handed-On: 1",
        b"X-Content-Type: multipart/form-data",
        b"X-Model-Version: evil",
        b"Content-Type: application/json",
    ]
    forged += [
        b"Connection: X-Protocol, Content-Type, Content-Length",
        b"Transfer-Encoding: identity",
        b"Upgrade: h2c",
        b"Expect: nothing",
        b"TE: trailers",
    ]
    forged += [
        b'X-Request-Id: "}{',
        b'traceparent: 00-"',
        b"Inference-Header-Content-Length: 1",
        b"Content-Type: multipart/form-data; boundary=\x00",
        b"Range: bytes=0-1",
    ]
    odd = rng.choice(
        [
            b"X: " + b"a" * rng.choice([5000, 9000, 14_000, 20_000, 100_000]),
            b"X: \xff\xfe",
            b"\xff: a",
            b"X: \0",
            b"X: a\rb",
            b": a",
            b"X : a",
            b"X",
            b" X: a",
            b"X: \x7f",
        ]
        + [b"\r\n".join(b"X-%d: a" % i for i in range(rng.choice([50, 99, 101, 1000])))]
        + forged * 2
        + [b"\r\n".join(rng.sample(forged, 3))]
    )
    data = http(rng.choice([PREDICT, V1, V2, b"/emnist/predict"]), sample(rng))
    return Hostile(
        data.replace(b"Connection: close", b"Connection: close\r\n" + odd, 1),
        ANY_PICTURE | NOT_HERE | {501},
        ours=False,
        may_close=True,
    )


def length(rng: random.Random) -> Hostile:
    """Lengths that are wrong, double or beside chunks: what smuggles a second request past a proxy."""
    second = b"POST /smuggled HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
    lines = rng.choice(
        [
            [b"Content-Length: -1"],
            [b"Content-Length: +3"],
            [b"Content-Length: 0x3"],
            [b"Content-Length: 3", b"Content-Length: 4"],
            [b"Content-Length: 3, 4"],
            [b"Content-Length: " + b"9" * 40],
            [b"Content-Length: 99999999"],
            [b"Content-Length: 3", b"Transfer-Encoding: chunked"],
            [b"Content-Length:"],
            [b"Transfer-Encoding: chunked", b"Content-Length: 6"],
            [b"Transfer-Encoding: xchunked"],
            [b"Transfer-Encoding: chunked, identity"],
            [b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"],
            [b"Transfer-Encoding:\x0bchunked"],
            [b"Transfer-Encoding : chunked"],
            [b"Content-Length: 3"],
        ]
    )
    body = rng.choice(
        [
            b"abc",
            b"0\r\n\r\n",
            b"3\r\nabc\r\n0\r\n\r\n",
            b"zz\r\n",
            b"ffffffffffffffff\r\nabc",
            b"3;" + b"x" * 5000 + b"\r\nabc\r\n0\r\n\r\n",
            b"-1\r\n",
            b"3\nabc",
        ]
    )
    trailer = rng.choice([b"", second])
    data = b"\r\n".join([b"POST %s HTTP/1.1" % rng.choice([PREDICT, V2]), b"Host: a", *lines, b"", body + trailer])
    # With the end of what is sent, nothing is waited for: what is not whole is no request.
    return Hostile(data, BAD | {404, 408, 413, 415}, ours=False, may_close=True, half_close=True)


def protocol(rng: random.Random) -> Hostile:
    """What is not HTTP/1.1 at all, or hardly."""
    line = rng.choice(
        [
            b"GET %s\r\n",
            b"GET %s HTTP/1.1\r\n\r\n",
            b"GET http://evil.example%s HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
            b"GET %s HTTP/9.9\r\n\r\n",
        ]
    )
    data = rng.choice(
        [
            line % rng.choice([PREDICT, b"/", b"/v2"]),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(300),
            b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
            b"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            b"\r\n" * 500 + b"X",
            b"SSH-2.0-x\r\n",
            b"*1\r\n$4\r\nINFO\r\n",
            b"EHLO a\r\n",
            rng.randbytes(rng.randrange(1, 400)),
            b"GET / HTTP/1.1\nHost: a\n\n",
            b"\x00",
            b"G" * 20000,
        ]
    )
    return Hostile(data, NOT_HERE | {200, 408, 505, 501}, ours=False, may_close=True, half_close=True)


def path(rng: random.Random) -> Hostile:
    """Paths and methods that are not there, TorchServe's own among them."""
    own = [
        b"ping",
        b"models",
        b"metrics",
        b"api-description",
        b"predictions",
        b"explanations",
        b"invocations",
        b"workflows",
        b"wfpredict",
        b"kserve",
        b"..",
        b"%2e%2e",
        b"x" * 3000,
    ]
    there = (
        b"/"
        + rng.choice([b"", b"predictions/", b"v1/models/", b"v2/models/", b"predictions/emnist/", b"models/"])
        + rng.choice(own)
        + rng.choice([b"", b"/", b"/1.0", b":predict", b"/infer"])
    )
    where = rng.choice(
        [
            there,
            there,
            b"//predictions/emnist",
            b"/predictions/emnist/1.0",
            b"/predictions/EMNIST",
            b"/models?url=http://evil.example/x.mar",
            b"/emnist/predict",
        ]
    )
    method = rng.choice(
        [b"POST", b"POST", b"GET", b"HEAD", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"FOO", b"M" * 500]
    )
    return Hostile(http(where, b"x", method=method), NOT_HERE, ours=method != b"HEAD")


def pipelined(rng: random.Random) -> Hostile:
    count = rng.randrange(2, 12)
    requests = [
        http(PREDICT, damaged(rng)).replace(
            b"Connection: close\r\n", b"" if number < count - 1 else b"Connection: close\r\n"
        )
        for number in range(count)
    ]
    # An answer of 400 or more closes, so the rest may be lost.
    return Hostile(b"".join(requests), ANY_PICTURE, may_close=True, half_close=True)


def slow(rng: random.Random) -> Hostile:
    """A request line, headers or a body that come drop by drop, or never end."""
    data = http(PREDICT, sample(rng), [(b"X", b"a" * 200)])
    chunked = (
        b"POST %s HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" % rng.choice([PREDICT, V1])
        + b"1\r\n[\r\n" * 500
    )
    cut = rng.choice(
        [data[:5], data[:60], data[: data.find(b"\r\n\r\n") + 3], data[:-1], data[: len(data) // 2], chunked, b"P"]
    )
    # TorchServe waits for the rest; HAProxy waits as long for the client as for TorchServe, and either may end it.
    if len(cut) > HEAD_BYTES:
        return Hostile(cut, frozenset({400, 504}), may_close=True, deadline_s=SILENT_S, slow=True)
    return Hostile(
        cut,
        frozenset({200, 400, 408}),
        ours=False,
        may_close=True,
        deadline_s=SLOW_S,
        slow=True,
        pause_s=rng.choice([0, 0, 0.5]),
    )


SILENT_S = 45.0  # timeout client and timeout server, 30 s
SLOW_S = 14.0  # timeout http-request, 10 s, and the way of an answer on a busy machine
MAKERS: dict[str, tuple[int, Maker]] = {  # of how many in a thousand, and by what
    "multipart": (130, multipart),
    "json": (100, deep_json),
    "v2": (110, v2_tensor),
    "v1": (60, v1_instances),
    "query": (80, query),
    "headers": (100, headers),
    "length": (80, length),
    "protocol": (50, protocol),
    "path": (60, path),
    "pipelined": (20, pipelined),
    "damaged": (120, lambda rng: as_any_form(rng, damaged(rng), ANY_PICTURE)),
    "polyglot": (30, lambda rng: as_any_form(rng, polyglot(rng), ANY_PICTURE)),
    "junk": (34, lambda rng: as_any_form(rng, junk(rng), UNREAD)),
    "bomb": (16, lambda rng: replace(as_any_form(rng, cheap_bomb(rng), ANY_PICTURE), may_overload=True)),
    "heavy": (4, lambda rng: replace(as_any_form(rng, heavy_bomb(rng), ANY_PICTURE), may_overload=True)),
    "slow": (6, slow),
}


@dataclass(frozen=True)
class Numbered:
    seed: int
    number: int
    kind: str
    hostile: Hostile


def make(seed: int, number: int) -> Numbered:
    """The request of that number; the same whenever and wherever it is made."""
    kind = kind_of(seed, number)
    return Numbered(seed, number, kind, MAKERS[kind][1](random.Random(f"{seed}/{number}")))


def kind_of(seed: int, number: int) -> str:
    return random.Random(f"kind of {seed}/{number}").choices(list(MAKERS), [share for share, _ in MAKERS.values()])[0]


if __name__ == "__main__":
    one = make(int(sys.argv[1]), int(sys.argv[2]))
    print(one.kind, len(one.hostile.data), one.hostile.data[:600])
    if len(sys.argv) > 3:
        print(send(sys.argv[3], one.hostile))

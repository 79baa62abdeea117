"""Hostile bodies in the forms that the service reads: multipart, V1, V2, and the picture alone."""

from __future__ import annotations

import base64
import json
import random
import struct
from collections.abc import Iterable

from hostile_pictures import SAMPLES, junk, sample_as
from hostile_wire import Hostile

BAD = frozenset({400})
UNREAD = frozenset({400, 413, 415, 422})  # a picture that cannot be read
ANY_PICTURE = UNREAD | {200}
PREDICT, V1, V2 = b"/predictions/emnist", b"/v1/models/emnist:predict", b"/v2/models/emnist/infer"
IMAGE = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28]}
ODD_NUMBERS = [0, -1, 1, 783, 785, 2**31, 2**32, 2**63, 2**64, 10**400, 0.5, True, None, "28", [], {}]


def http(
    path: bytes,
    body: bytes = b"",
    headers: Iterable[tuple[bytes, bytes]] = (),
    method: bytes = b"POST",
    length: bytes | None = None,
) -> bytes:
    lines = [
        b"%s %s HTTP/1.1" % (method, path),
        b"Host: emnist",
        b"Connection: close",
        *(b"%s: %s" % header for header in headers),
    ]
    lines.append(b"Content-Length: " + (b"%d" % len(body) if length is None else length))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def sample(rng: random.Random) -> bytes:
    return sample_as(rng.randrange(len(SAMPLES)), "PNG")


def as_multipart(rng: random.Random, picture: bytes) -> bytes:
    head = b'--b\r\nContent-Disposition: form-data; name="data"; filename="x"\r\n\r\n'
    body = head + picture + b"\r\n--b--\r\n"
    return http(
        PREDICT,
        body,
        [(b"Content-Type", rng.choice([b"multipart/form-data; boundary=b", b'Multipart/Form-Data;boundary="b"']))],
    )


def as_any_form(rng: random.Random, picture: bytes, allowed: frozenset[int]) -> Hostile:
    """A picture as the body, in a multipart field, and in both forms of KServe."""
    form = rng.randrange(5)
    if form == 0:
        return Hostile(http(PREDICT, picture), allowed)
    if form == 1:
        return Hostile(as_multipart(rng, picture), allowed)
    text = base64.b64encode(picture).decode()
    if form == 2:
        return Hostile(http(V1, json.dumps({"instances": [{"b64": text}]}).encode()), frozenset({200, 413}))
    tensor = {"name": "picture", "datatype": "BYTES", "shape": [1]}
    if form == 3:
        return Hostile(http(V2, json.dumps({"inputs": [tensor | {"data": [text]}]}).encode()), allowed)
    head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": len(picture) + 4}}]}).encode()
    length = (b"Inference-Header-Content-Length", b"%d" % len(head))
    return Hostile(http(V2, head + struct.pack("<I", len(picture)) + picture, [length]), allowed)


def multipart(rng: random.Random) -> Hostile:
    """Boundaries that are missing, wrong or many; parts with odd headers."""
    disposition = b"Content-Disposition: form-data; " + rng.choice(
        [
            b'name="data"',
            b'name="data"; filename="../../etc/passwd"',
            b"",
            b'name="\xff\xfe"',
            b"name*=utf-8''data",
            b'name="' + b"a" * 9000,
            b'name="a";' * 50,
        ]
    )
    extra = rng.choice(
        [
            b"",
            b"Content-Type: application/json",
            b"Content-Type: text/plain; charset=nosuch",
            b"Content-Transfer-Encoding: base64",
            b"Content-Transfer-Encoding: \xff",
            b"Content-Length: -1",
            b"Content-Type: multipart/mixed; boundary=c",
            b"X: " + b"a" * 5000,
            b"\xff\xfe\xfd",
            b"X: y\r\n" * 500,
            b"Content-Type: application/json\r\nContent-Disposition: form-data; name=top_k",
        ]
    )
    content = rng.choice(
        [sample(rng), b"[" * 50_000, b'{"a":' * 50_000, b"", b"--b", b"\r\n--b--", junk(rng), b"--c\r\n\r\nx\r\n--c--"]
    )
    part = b"\r\n".join([b"--b", disposition, *([extra] if extra else []), b"", content]) + b"\r\n"
    end = rng.choice([b"--b--\r\n", b"--b--", b"--b", b"", b"--b\r\n" * 2000, b"--c--\r\n"])
    body = (
        rng.choice([b"", b"preamble\r\n"]) + part * rng.choice([1, 1, 1, 2, 17, 3000 if len(part) < 300 else 3]) + end
    )
    kind = b"multipart/form-data" + rng.choice(
        [b"; boundary=b"] * 8
        + [b"", b"; boundary=", b"; boundary=" + b"b" * 3000, b'; boundary="b', b"; charset=x", b";" * 99]
    )
    return Hostile(http(PREDICT, body, [(b"Content-Type", kind)]), ANY_PICTURE)


def deep_json(rng: random.Random) -> Hostile:
    """JSON that is deep, long, of many objects, or none."""
    size = rng.choice([10, 1000, 100_000])
    body = rng.choice(
        [
            b"[" * size,
            b'{"a":' * size,
            b"[" * size + b"]" * size,
            b"9" * size,
            b"-" * size,
            b'"' + b"\\ud800" * size,
            b"\xff" * size,
            b"[" + b"[]," * size,
            b'{"instances":' + b"[{}," * size,
            b'{"' + b"k" * size + b'":1}',
            b'{"id":"' + b"i" * size + b'","inputs":[]}',
            b"{}" * size,
            b"NaN",
            b"\xef\xbb\xbf{}",
            b'{"inputs":[{"name":"image","datatype":"UINT8","shape":[1,28,28],"data":["'
            + b"a" * size * 20
            + b'"'
            + b',"b"' * 783
            + b"]}]}",
            b'{"instances":[' + b",".join([b'{"b64":"' + base64.b64encode(b"BM" * 8) + b'"}'] * 1025) + b"]}",
            b"1e999",
            b'{"a":1,' * size,
        ]
    )
    return Hostile(
        http(
            rng.choice([V1, V2, V2]),
            body,
            [(b"Content-Type", rng.choice([b"application/json", b"application/json; charset=utf-7"]))],
        ),
        BAD,
    )


def v2_tensor(rng: random.Random) -> Hostile:
    """Shapes that overflow, lengths that are wrong, types that are others."""
    count = rng.choice([1, 1, 2, 1024])
    tensor: dict[str, object] = IMAGE | {"shape": [count, 28, 28]}
    binary = rng.random() < 0.5
    rest = rng.randbytes(784 * count) if binary else b""
    tensor |= {"parameters": {"binary_data_size": len(rest)}} if binary else {"data": [7] * 784 * min(count, 2)}
    odd = rng.choice(ODD_NUMBERS)
    wrong = rng.choice(["shape", "sides", "size", "data", "datatype", "name", "length", "outputs", "id", "parameters"])
    request: dict[str, object] = {"inputs": [tensor]}
    if wrong == "sides":
        tensor["shape"] = [rng.choice(ODD_NUMBERS) for _ in range(rng.randrange(6))]
    elif wrong == "size":
        tensor["parameters"] = {"binary_data_size": odd}
    elif wrong in {"id", "outputs", "parameters"}:
        request[wrong] = rng.choice(
            [
                odd,
                [odd] * 2000,
                {"name": odd},
                "x" * 100_000,
                [{"name": "character", "parameters": {"binary_data": odd}}] * 2,
            ]
        )
    elif wrong != "length":
        tensor[wrong] = rng.choice([odd, [odd] * 784, {"data": odd}, "x" * 100_000])
    head = json.dumps(request).encode()
    length = (
        rng.choice([b"%d" % (len(head) + rng.choice([-1, 1, 10**6])), b"-1", b"9" * 30, b"0x10", b"", b"1,2"])
        if wrong == "length"
        else b"%d" % len(head)
    )
    headers = [(b"Inference-Header-Content-Length", length)] if binary or wrong == "length" else []
    return Hostile(http(V2, head + rest, headers), BAD | {200})  # 200: an odd value that is none, as an id of null


def v1_instances(rng: random.Random) -> Hostile:
    texts = [
        "%",
        "a",
        "====",
        "YQ",
        "YQ==\n",
        " YQ==",
        "ä",
        "\ud800",
        "-_-_",
        "A" * 99_999,
        "",
        base64.b64encode(junk(rng)).decode(),
        7,
        None,
        ["YQ=="],
    ]
    body = {"instances": [{"b64": rng.choice(texts)} for _ in range(rng.choice([1, 2, 50]))]}
    if rng.random() < 0.3:
        body |= {
            rng.choice(["parameters", "signature_name", "instances"]): rng.choice(
                [{"top_k": 10**30}, {"alphabet": "x" * 50_000}, {"alphabet": "\0"}, [], 3]
            )
        }
    return Hostile(http(V1, json.dumps(body).encode()), BAD | {200})

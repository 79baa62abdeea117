"""Our Open Inference Protocol beside a Triton server's: the same requests to both, and every difference is one that has
its reason.

`make conformance-test` runs it. Triton comes from PyPI with PyTriton, in an environment of its own, and needs no GPU.
Of a stand-in for the model (triton_server.py) it can answer which character is seen, and the image; what else is in an
answer is compared by its form.
"""

from __future__ import annotations

import gzip
import http.client
import json
import os
import struct
import subprocess
import sysconfig
import time
from dataclasses import dataclass

import numpy as np
import pytest
import tritonclient.http as triton_client
from conformance_cases import LENGTH, cases

from serving.local import reserved_ports

pytestmark = pytest.mark.conformance

TIMEOUT_S = 30
START_TIMEOUT_S = 120
DTYPES = {"UINT8": "<u1", "INT32": "<i4", "FP32": "<f4"}
MODELS_OWN = {"confidence", "alternatives"}  # outputs that the stand-in does not know


@dataclass(frozen=True)
class Kept:
    """Cases in which ours differs from Triton: in what, by aspect (Triton's, ours), and why it stays so."""

    reason: str
    differs: dict[str, tuple[object, object]]
    cases: tuple[str, ...]


def kept(reason, differs, *names):
    return Kept(reason, differs, names)


ALL = ("character", "ascii", "confidence", "alternatives", "image", "error")
KEPT = [
    kept(
        "the specification's bodies of these answers; Triton has none",
        {"body": (None, ["live"]), "content type": ("text/plain", "application/json")},
        "live",
    ),
    kept("the same", {"body": (None, ["ready"]), "content type": ("text/plain", "application/json")}, "ready"),
    kept(
        "the same",
        {"body": (None, ["name", "ready"]), "content type": ("text/plain", "application/json")},
        "model ready",
        "model ready, version",
    ),
    kept("a slash after /v2 is forgiven", {"status": (404, 200)}, "server, slash"),
    kept(
        "what is not there is 404 (RFC 9110), as in the other answers about it; clients see that it is not 200",
        {"status": (400, 404)},
        "model ready, another version",
        "model ready, another model",
    ),
    kept(
        "where there is GET, there is HEAD (RFC 9110, 9.1)",
        {"status": (405, 200)},
        "live, HEAD",
        "ready, HEAD",
        "metadata, HEAD",
    ),
    kept(
        "the client's mistakes are 4xx: the specification says 'typically 400'",
        {"status": (500, 400)},
        "parameters a list",
        "binary_data_output a number",
        "binary_data a text",
        "id a number",
        "outputs by name alone",
        "output without a name",
        "input without a name",
        "no datatype",
        "outputs an object",
        "no inputs",
        "negative shape",
        "shape of fractions",
        "no shape",
        "too few values",
        "too many values",
        "a value of -1",
        "fractions",
        "texts for numbers",
        "length too small",
        "invalid JSON",
        "JSON and more",
        "a list",
    ),
    kept(
        "nothing to read is a mistake; PyTriton's side of Triton fails on it",
        {"status": (500, 400)},
        "empty inputs",
        "no pictures",
        "no pictures in binary",
    ),
    kept("some clients write null for what they leave out", {"status": (500, 200)}, "null for what is optional"),
    kept("256 is no UINT8; Triton takes it for 0", {"status": (200, 400)}, "a value of 256"),
    kept("NaN is no JSON (RFC 8259)", {"status": (200, 400)}, "NaN"),
    kept(
        "a mistyped 'parameters' or 'alphabet' must not be answered as if it were not there",
        {"status": (200, 400)},
        "unknown field",
        "unknown parameter",
        "parameter of another type",
        "parameter a fraction",
    ),
    kept(
        "the same; and 'classification' is an extension that this server does not claim",
        {"status": (200, 400)},
        "unknown parameter of an output",
        "classification",
    ),
    kept("asking twice is a mistake", {"status": (200, 400)}, "output twice"),
    kept("the model reads either pictures or prepared ones", {"status": (200, 400)}, "both inputs"),
    kept(
        "compression is no part of the protocol, and pictures are compressed already; the answer names what is taken",
        {"status": (200, 415)},
        "gzip",
        "deflate",
    ),
    kept("the same", {"encoding": ("gzip", None)}, "gzip asked for"),
    kept("'if specified this identifier must be returned'", {"id": (None, "")}, "empty id"),
    kept(
        "outputs come in the order that they are asked for in; Triton's is the model's, and the protocol asks for none",
        {"outputs": (("ascii", "image"), ("image", "ascii"))},
        "order of outputs",
    ),
    kept(
        "the same",
        {"outputs": (("ascii", "image"), ("image", "ascii")), "binary": (("ascii", "image"), ("image", "ascii"))},
        "order of binary outputs",
    ),
    kept(
        "'image' would be most of every answer, and 'error' changes how a bad picture is told: they come on request,"
        " against the specification",
        {"outputs": (ALL, ALL[:4])},
        "image, all outputs",
        "no outputs named",
        "binary_data_output of all",
    ),
    kept(
        "binary_data_output is for all outputs, says the extension, unless 'binary_data' overrides it; Triton overlooks"
        " it where outputs are named",
        {
            "binary": ((), ("character", "ascii")),
            "content type": ("application/json", "application/octet-stream"),
            "JSON's length is told": (False, True),
        },
        "binary_data_output",
    ),
    kept(
        "the same",
        {
            "binary": ((), ("ascii",)),
            "content type": ("application/json", "application/octet-stream"),
            "JSON's length is told": (False, True),
        },
        "binary_data_output, overridden",
    ),
]


@pytest.fixture(scope="module")
def letter(emnist):
    return emnist.images[int((emnist.labels == emnist.classes.index("K")).nonzero()[0])].numpy()


@pytest.fixture(scope="module")
def triton(root, tmp_path_factory):
    """The port of a Triton server."""
    python, log = root / ".venv-triton" / "bin" / "python", tmp_path_factory.mktemp("triton") / "log"
    # Triton's own Python loads libpython, and must find the one of the environment that it is to run.
    libraries = os.pathsep.join(filter(None, (sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH"))))
    with log.open("wb") as stream, reserved_ports(1) as (port,):
        command = [python, root / "serving" / "tests" / "triton_server.py", str(port)]
        process = subprocess.Popen(
            command, env=os.environ | {"LD_LIBRARY_PATH": libraries}, stdout=stream, stderr=subprocess.STDOUT
        )
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not is_ready(port):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.5)
            yield port
        finally:
            process.terminate()
            process.wait(TIMEOUT_S)


def is_ready(port):
    try:
        return exchange(port, "GET", "/v2/models/emnist/ready")[0].status == 200
    except OSError:
        return False


def exchange(port, method, path, body=None, headers=None):
    """An answer, its body, and whether the connection serves another request after it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    headers = headers or {}
    connection.request(method, path, body, headers, encode_chunked="Transfer-Encoding" in headers)
    first = connection.sock
    answer = connection.getresponse()
    content = answer.read()
    connection.request("GET", "/v2/health/live")
    again = connection.getresponse().status == 200 and connection.sock is first
    connection.close()
    return answer, content, again


def seen(port, version, case):
    """What a server answers, by aspect, with `version` taken out."""
    answer, content, again = exchange(
        port, case.method, case.path.replace("{version}", version), case.body, case.headers
    )
    length = answer.getheader(LENGTH)
    said = {
        "status": answer.status,
        "connection": again,
        "content type": answer.getheader("Content-Type"),
        "encoding": answer.getheader("Content-Encoding"),
    }
    said["JSON's length is told"] = length is not None
    said["length"] = case.method == "HEAD" or answer.getheader("Content-Length") == str(len(content))
    if case.method == "HEAD":
        return said
    content = gzip.decompress(content) if said["encoding"] == "gzip" else content
    body = json.loads(content[: int(length)] if length else content) if content else None
    if answer.status != 200:
        return said | {"body": sorted(body), "error": type(body["error"])}
    if body is None or "model_name" not in body:
        return (
            said
            | {"body": body and sorted(body)}
            | ({"tensors": [body["inputs"], body["outputs"]]} if "inputs" in (body or {}) else {})
        )
    said |= {
        "body": sorted(set(body) - {"id"}),
        "id": body.get("id"),
        "model": (body["model_name"], body["model_version"] == version),
    }
    assert not length or content[int(length) :], "a length of the JSON, and nothing after it"
    return said | outputs_seen(body["outputs"], content[int(length) :] if length else b"")


def outputs_seen(outputs, rest):
    """Which outputs there are, which of them are binary, and their contents as bytes, so far as the stand-in knows
    them.
    """
    contents, binary, start = {}, [], 0
    for output in outputs:
        name = output["name"]
        assert set(output) - {"data", "parameters"} == {"name", "datatype", "shape"}
        assert ("data" in output) != ("parameters" in output)
        if "data" in output:
            content = to_bytes(output["datatype"], output["data"])
        else:
            assert list(output["parameters"]) == ["binary_data_size"]
            binary.append(name)
            content = rest[start : start + output["parameters"]["binary_data_size"]]
            assert len(content) == output["parameters"]["binary_data_size"]
            start += len(content)
        contents[name] = (output["datatype"], output["shape"], None if name in MODELS_OWN else content)
    assert start == len(rest), "bytes that no output claims"
    return {"outputs": tuple(contents), "binary": tuple(binary), "contents": contents}


def to_bytes(datatype, data):
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in data)
    return np.array(data, DTYPES[datatype]).tobytes()


def test_every_difference_has_a_reason(triton, server, recognizer, letter):
    ours = int(server.url.rpartition(":")[2])
    expected = {name: group.differs for group in KEPT for name in group.cases}
    all_cases = cases(letter)
    assert not set(expected) - set(all_cases)
    wrong = {}
    for name, case in all_cases.items():
        theirs, mine = seen(triton, "1", case), seen(ours, recognizer.version, case)
        differs = differences(theirs, mine)
        if differs != expected.get(name, {}):
            wrong[name] = (differs, expected.get(name, {}))
    assert not wrong, "\n".join(
        f"{name}: {found}, where {stated or 'none'} was stated" for name, (found, stated) in wrong.items()
    )


def differences(theirs, mine):
    """Aspects in which two answers differ, and what they are."""
    if theirs["status"] != 200:  # Triton says of many errors that they are text, although they are JSON
        theirs |= {"content type": "application/json"}
    aspects = theirs | mine
    if (theirs["status"] == 200) != (mine["status"] == 200):
        aspects = dict.fromkeys(("status", "connection", "length"))  # nothing else can be compared
    elif "contents" in aspects and set(theirs["outputs"]) != set(mine["outputs"]):
        both = theirs["contents"].keys() & mine["contents"].keys()
        theirs, mine = (
            {**said, "contents": {name: said["contents"][name] for name in both}, "binary": None}
            for said in (theirs, mine)
        )
    return {
        aspect: (theirs.get(aspect), mine.get(aspect)) for aspect in aspects if theirs.get(aspect) != mine.get(aspect)
    }


def test_tritonclient_sees_the_same_of_both(triton, server, letter):
    addresses = (f"127.0.0.1:{triton}", server.url.removeprefix("http://"))
    for binary in (True, False):
        answers = []
        for address in addresses:
            with triton_client.InferenceServerClient(address) as client:
                tensor = triton_client.InferInput("image", [3, 28, 28], "UINT8").set_data_from_numpy(
                    np.stack([letter] * 3), binary_data=binary
                )
                outputs = [
                    triton_client.InferRequestedOutput(name, binary_data=binary)
                    for name in ("character", "ascii", "image")
                ]
                answers.append(
                    client.infer(
                        "emnist",
                        [tensor],
                        outputs=outputs,
                        request_id="7",
                        priority=1,
                        timeout=9_000_000,
                        sequence_id=5,
                    )
                )
        for name in ("character", "ascii", "image"):
            theirs, ours = (answer.as_numpy(name) for answer in answers)
            assert theirs.dtype == ours.dtype
            assert (theirs == ours).all()
            assert {answer.get_output(name)["datatype"] for answer in answers} == {
                answers[0].get_output(name)["datatype"]
            }
        assert [answer.get_response()["id"] for answer in answers] == ["7", "7"]

"""KServe's V1 and V2 forms, row by row: what is answered, and what is said of what is wrong."""

import base64
import io
import json
import struct

import numpy as np
import pytest
from PIL import Image

from handlers.protocols.messages import MAX_PICTURES
from handlers.protocols.service import answer_rows

V1, V2 = {"x-protocol": "v1"}, {"x-protocol": "v2"}
PICTURE = {"name": "picture", "datatype": "BYTES", "shape": [1]}
IMAGE = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28]}


def png(image):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def letters(emnist):
    return emnist.images[[int((emnist.labels == emnist.classes.index(c)).nonzero()[0]) for c in "KW3"]].numpy()


def base64_of(data):
    return base64.b64encode(data).decode()


def ask(recognizer, body, headers, binary=None):
    encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
    if binary is not None:
        headers = headers | {"inference-header-content-length": str(len(encoded))}
    (reply,) = answer_rows(recognizer, [{"body": encoded + (binary or b"")}], [headers], "emnist")
    length = reply.headers.get("Inference-Header-Content-Length")
    said = json.loads(reply.body[: int(length)] if length else reply.body)
    return reply.status, said, reply.body[int(length) :] if length else b""


def outputs_of(said):
    return {output["name"]: output for output in said["outputs"]}


def bytes_tensor(*elements):
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def test_v1_answers_in_order_and_has_an_error_in_the_place_of_a_bad_picture(recognizer, letters):
    instances = [{"b64": base64_of(data)} for data in (png(letters[0]), b"", png(letters[2]))]
    status, said, _ = ask(recognizer, {"instances": instances, "parameters": {"alphabet": "classes", "top_k": 1}}, V1)
    assert status == 200
    assert [list(prediction) for prediction in said["predictions"]][1] == ["error"]
    assert said["predictions"][1]["error"]["code"] == "invalid_image"
    assert [said["predictions"][i]["character"] for i in (0, 2)] == ["K", "3"]
    assert said["predictions"][0]["alphabet"] == "classes"
    assert said["predictions"][0]["alternatives"] == []


def test_v1_takes_null_for_no_parameters(recognizer, letters):
    status, said, _ = ask(recognizer, {"instances": [{"b64": base64_of(png(letters[0]))}], "parameters": None}, V1)
    assert (status, said["predictions"][0]["character"]) == (200, "K")


BAD_V1 = {
    "no json": (b"\x89PNG", "no JSON"),
    "a list": ([], "object"),
    "deep": (b"[" * 200_000, "nested"),
    "not a number": (b'{"instances": NaN}', "NaN"),
    "huge number": (b'{"instances": ' + b"9" * 10_000 + b"}", "JSON"),
    "not utf-8": (b'{"instances": "\xff"}', "JSON"),
    "no instances": ({}, "instances"),
    "empty": ({"instances": []}, "1 to"),
    "too many": ({"instances": [{"b64": ""}] * (MAX_PICTURES + 1)}, "1 to"),
    "an instance": ({"instances": ["x"]}, "instance 0"),
    "another key": ({"instances": [{"b64": "", "x": 1}]}, "instance 0"),
    "no base64": ({"instances": [{"b64": "%"}]}, "base64"),
    "not ascii": ({"instances": [{"b64": "ä"}]}, "base64"),
    "signature": ({"instances": [{"b64": ""}], "signature_name": "x"}, "signature_name"),
    "parameters": ({"instances": [{"b64": ""}], "parameters": []}, "parameters"),
    "alphabet": ({"instances": [{"b64": ""}], "parameters": {"alphabet": 3}}, "alphabet"),
    "greek": ({"instances": [{"b64": ""}], "parameters": {"alphabet": "greek"}}, "vin"),
    "top_k": ({"instances": [{"b64": ""}], "parameters": {"top_k": True}}, "top_k"),
    "top_k range": ({"instances": [{"b64": ""}], "parameters": {"top_k": 99}}, "36"),
}


@pytest.mark.parametrize("name", BAD_V1)
def test_v1_says_what_is_wrong(recognizer, name):
    body, word = BAD_V1[name]
    status, said, _ = ask(recognizer, body, V1)
    assert status == 400
    assert list(said) == ["error"]
    assert word in said["error"]


@pytest.mark.parametrize("binary", [False, True])
def test_v2_reads_encoded_pictures(recognizer, letters, binary):
    pictures = [png(letter) for letter in letters]
    tensor = PICTURE | {"shape": [3]}
    data = bytes_tensor(*pictures)
    tensor |= (
        {"parameters": {"binary_data_size": len(data)}}
        if binary
        else {"data": [base64_of(picture) for picture in pictures]}
    )
    status, said, _ = ask(recognizer, {"id": "seven", "inputs": [tensor]}, V2, data if binary else None)
    assert status == 200
    assert (said["model_name"], said["model_version"], said["id"]) == ("emnist", recognizer.version, "seven")
    outputs = outputs_of(said)
    assert list(outputs) == ["character", "ascii", "confidence", "alternatives"]
    assert outputs["character"] == {"name": "character", "datatype": "BYTES", "shape": [3], "data": ["K", "W", "3"]}
    assert outputs["ascii"]["data"] == [ord(c) for c in "KW3"]
    plain = json.loads(answer_rows(recognizer, [{"body": pictures[0]}])[0].body)
    assert outputs["confidence"]["data"][0] == pytest.approx(plain["confidence"], abs=1e-5)
    assert [entry["character"] for entry in json.loads(outputs["alternatives"]["data"][0])] == [
        e["character"] for e in plain["alternatives"]
    ]


@pytest.mark.parametrize("form", ["nested", "flat", "binary"])
def test_v2_reads_prepared_pictures_as_the_network_does(recognizer, letters, form):
    tensor = IMAGE | {"shape": [3, 28, 28]}
    if form == "binary":
        tensor |= {"parameters": {"binary_data_size": letters.size}}
    else:
        tensor |= {"data": (letters if form == "nested" else letters.ravel()).tolist()}
    request = {
        "inputs": [tensor],
        "outputs": [{"name": "image"}, {"name": "confidence"}],
        "parameters": {"alphabet": "classes"},
    }
    status, said, _ = ask(recognizer, request, V2, letters.tobytes() if form == "binary" else None)
    assert status == 200
    outputs = outputs_of(said)
    assert list(outputs) == ["image", "confidence"]
    assert (np.array(outputs["image"]["data"]).reshape(3, 28, 28) == letters).all()
    assert outputs["confidence"]["data"] == pytest.approx(recognizer.probabilities(letters).max(axis=1), abs=1e-5)


def test_v2_answers_in_binary_where_it_is_asked_to(recognizer, letters):
    outputs = [
        {"name": "character", "parameters": {"binary_data": True}},
        {"name": "ascii"},
        {"name": "image", "parameters": {"binary_data": True}},
    ]
    tensor = IMAGE | {"shape": [3, 28, 28], "data": letters.tolist()}
    status, said, rest = ask(recognizer, {"inputs": [tensor], "outputs": outputs}, V2)
    assert status == 200
    outputs = outputs_of(said)
    assert outputs["ascii"]["data"] == [75, 87, 51]
    assert outputs["character"]["parameters"] == {"binary_data_size": 15}
    assert rest == bytes_tensor(b"K", b"W", b"3") + letters.tobytes()
    status, said, rest = ask(recognizer, {"inputs": [tensor], "parameters": {"binary_data_output": True}}, V2)
    assert sum(output["parameters"]["binary_data_size"] for output in said["outputs"]) == len(rest)


def test_v2_fails_for_a_bad_picture_or_tells_it_apart_on_request(recognizer, letters):
    tensor = PICTURE | {"shape": [3], "data": [base64_of(data) for data in (png(letters[0]), b"junk", png(letters[2]))]}
    status, said, _ = ask(recognizer, {"inputs": [tensor]}, V2)
    assert status == 415
    assert "picture 1" in said["error"]
    names = [{"name": name} for name in ("error", "character", "ascii", "confidence", "image")]
    status, said, _ = ask(recognizer, {"inputs": [tensor], "outputs": names}, V2)
    assert status == 200
    outputs = outputs_of(said)
    assert outputs["character"]["data"] == ["K", "", "3"]
    assert outputs["ascii"]["data"] == [75, 0, 51]
    assert [bool(text) for text in outputs["error"]["data"]] == [False, True, False]
    assert json.loads(outputs["error"]["data"][1])["code"] == "unsupported_format"
    assert np.array(outputs["image"]["data"]).reshape(3, 784)[1].sum() == 0


def test_v2_takes_what_clients_add_to_a_request(recognizer, letters):
    tensor = IMAGE | {"data": letters[0].tolist()}
    for more in (
        {"id": None, "parameters": None, "outputs": None, "inputs": [tensor | {"parameters": None}]},
        {"outputs": [{"name": "character", "parameters": None}]},
        {"model_name": "emnist", "model_version": "1"},
        {"parameters": {"sequence_id": 1, "sequence_start": True, "sequence_end": False, "priority": 1, "timeout": 1}},
    ):
        status, said, _ = ask(recognizer, {"inputs": [tensor]} | more, V2)
        assert (status, "id" in said) == (200, False), said
        assert outputs_of(said)["character"]["data"] == ["K"]


def image(**changes):
    return {"inputs": [IMAGE | {"data": [0] * 784} | changes]}


BAD_V2 = {
    "no json": (b"\x89PNG", "no JSON"),
    "no inputs": ({}, "inputs"),
    "no tensor": ({"inputs": []}, "one tensor"),
    "two tensors": ({"inputs": [IMAGE, PICTURE]}, "one tensor"),
    "id": (image() | {"id": 7}, "id"),
    "unknown part": (image() | {"input": []}, "'input'"),
    "name": (image(name="pixels"), "picture, image"),
    "name is a list": (image(name=["image"]), "picture, image"),
    "datatype": (image(datatype="FP32"), "UINT8"),
    "shape": (image(shape=[1, 784]), "[N, 28, 28]"),
    "shape of text": (image(shape="1,28,28"), "[N, 28, 28]"),
    "empty shape": (image(shape=[]), "[N, 28, 28]"),
    "shape of booleans": (image(shape=[True, 28, 28]), "[N, 28, 28]"),
    "negative": (image(shape=[-1, 28, 28]), "1 to"),
    "overflow": (image(shape=[2**64 + 1, 28, 28]), "1 to"),
    "too few values": (image(data=[0] * 783), "784 whole numbers"),
    "a value above 255": (image(data=[256] + [0] * 783), "0 to 255"),
    "a value below 0": (image(data=[-1] + [0] * 783), "0 to 255"),
    "huge values": (image(data=[2**70] * 784), "0 to 255"),
    "fractions": (image(data=[0.5] * 784), "whole numbers"),
    "ragged": (image(data=[[0], [0, 0]]), "whole numbers"),
    "text": (image(data="0" * 784), "whole numbers"),
    "no data": ({"inputs": [IMAGE]}, "either 'data'"),
    "both": (image(parameters={"binary_data_size": 784}), "either 'data'"),
    "binary without its bytes": ({"inputs": [IMAGE | {"parameters": {"binary_data_size": 784}}]}, "0 bytes follow"),
    "output": (image() | {"outputs": [{"name": "digit"}]}, "character"),
    "output twice": (image() | {"outputs": [{"name": "ascii"}] * 2}, "twice"),
    "output's parameter": (
        image() | {"outputs": [{"name": "ascii", "parameters": {"classification": 2}}]},
        "binary_data",
    ),
    "parameter": (image() | {"parameters": {"topk": 1}}, "topk"),
    "binary_data_output": (image() | {"parameters": {"binary_data_output": 1}}, "true or false"),
    "top_k": (image() | {"parameters": {"top_k": "1"}}, "top_k"),
    "base64": ({"inputs": [PICTURE | {"data": ["%"]}]}, "base64"),
    "count": ({"inputs": [PICTURE | {"data": []}]}, "1 strings"),
}


@pytest.mark.parametrize("name", BAD_V2)
def test_v2_says_what_it_expected(recognizer, name):
    body, word = BAD_V2[name]
    status, said, _ = ask(recognizer, body, V2)
    assert status == 400
    assert list(said) == ["error"]
    assert word in said["error"]


def sized(tensor, size):
    return {"inputs": [tensor | {"parameters": {"binary_data_size": size}}]}


BAD_BINARY = {
    "fewer bytes than told": (sized(IMAGE, 784), bytes(783)),
    "fewer than the shape": (sized(IMAGE, 783), bytes(783)),
    "more than are claimed": (image(), bytes(1)),
    "an element beyond the end": (sized(PICTURE, 8), struct.pack("<I", 2**32 - 1) + bytes(4)),
    "too few elements": (sized(PICTURE | {"shape": [2]}, 5), bytes_tensor(b"x")),
    "too many elements": (sized(PICTURE, 10), bytes_tensor(b"x", b"y")),
    "half a length": (sized(PICTURE, 3), bytes(3)),
}


@pytest.mark.parametrize("name", BAD_BINARY)
def test_v2_refuses_binary_tensors_of_a_wrong_size(recognizer, name):
    body, rest = BAD_BINARY[name]
    status, said, _ = ask(recognizer, body, V2, rest)
    assert status == 400, said


@pytest.mark.parametrize("length", ["", "-1", "x", "1e3", "9" * 5000, "3", "²"])
def test_v2_refuses_a_wrong_length_of_the_json(recognizer, length):
    (reply,) = answer_rows(recognizer, [{"body": b"{}"}], [V2 | {"inference-header-content-length": length}])
    assert reply.status == 400


def test_a_batch_of_all_forms_is_answered_row_by_row(recognizer, letters):
    tensor = IMAGE | {"shape": [3, 28, 28], "data": letters.tolist()}
    rows = [
        {"body": png(letters[0])},
        {"body": json.dumps({"inputs": [tensor]}).encode()},
        {"body": b"{"},
        {"body": png(letters[1])},
    ]
    replies = answer_rows(recognizer, rows, [{}, V2, V1, {"x-protocol": "no such"}])
    assert [reply.status for reply in replies] == [200, 200, 400, 200]
    assert json.loads(replies[0].body)["character"] == "K"
    assert outputs_of(json.loads(replies[1].body))["character"]["data"] == ["K", "W", "3"]
    assert json.loads(replies[3].body)["character"] == "W"


def test_v2_metadata_names_what_is_accepted_and_answered(recognizer, letters):
    (reply,) = answer_rows(recognizer, [{}], [{"x-protocol": "v2-metadata"}], "emnist")
    said = json.loads(reply.body)
    assert (said["name"], said["versions"]) == ("emnist", [recognizer.version])
    asked = {
        "inputs": [IMAGE | {"data": letters[0].tolist()}],
        "outputs": [{"name": output["name"]} for output in said["outputs"]],
    }
    status, answer, _ = ask(recognizer, asked, V2)
    assert status == 200
    for promised, given in zip(said["outputs"], answer["outputs"], strict=True):
        assert (promised["name"], promised["datatype"]) == (given["name"], given["datatype"])
        assert [1 if side == -1 else side for side in promised["shape"]] == given["shape"]

"""multipart/form-data (RFC 7578) -> its fields. TorchServe's own reader answers what is malformed with 500 and parses
parts of JSON.
"""

from __future__ import annotations

from email.message import Message

from handlers.protocols.messages import RequestError, shown

KIND = "multipart/form-data"
MAX_PARTS = 16
MAX_HEAD_BYTES = 4096  # of one part
MAX_BOUNDARY = 70  # characters; RFC 2046


def is_multipart(content_type: str) -> bool:
    return header(content_type).get_content_type() == KIND


def fields_of(body: bytes, content_type: str) -> dict[str, bytes]:
    """The contents of the parts by their names. Raises RequestError."""
    boundary = header(content_type).get_param("boundary")
    if not isinstance(boundary, str) or not 1 <= len(boundary) <= MAX_BOUNDARY or not boundary.isascii():
        raise malformed(f"its content type names no boundary of 1 to {MAX_BOUNDARY} ASCII characters")
    delimiter = b"\r\n--" + boundary.encode()
    _, *parts = (b"\r\n" + body).split(delimiter, MAX_PARTS + 1)
    if len(parts) < 2 or (len(parts) <= MAX_PARTS and not parts[-1].startswith(b"--")):
        raise malformed("it has no parts between its boundaries, or no end")
    fields: dict[str, bytes] = {}
    for part in parts:
        if part.startswith(b"--"):
            return fields
        head, blank, content = part.partition(b"\r\n\r\n")
        if not blank or len(head) > MAX_HEAD_BYTES:
            raise malformed(f"a part has no header, or one above {MAX_HEAD_BYTES} bytes")
        name = name_of(head)
        if name in fields:
            raise malformed(f"the field '{shown(name)}' is there twice")
        fields[name] = content
    raise malformed(f"it has more than {MAX_PARTS} parts")


def name_of(head: bytes) -> str:
    """The name in a part's Content-Disposition. Raises RequestError."""
    for line in head.decode("utf-8", "replace").split("\r\n"):
        key, _, value = line.partition(":")
        if key.strip().lower() == "content-disposition":
            name = header(value).get_param("name")
            if isinstance(name, str):
                return name
    raise malformed("a part has no Content-Disposition with a name")


def header(value: str) -> Message:
    message = Message()
    message["Content-Type"] = " ".join(value.split())
    return message


def malformed(why: str) -> RequestError:
    return RequestError("bad_request", f"the multipart body is malformed: {why}")

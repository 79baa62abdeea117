"""What may be a key: clients send it in a header, and HAProxy asks for it."""

from __future__ import annotations

UNUSABLE = "must not be empty or hold what no header can; leave it unset, and nobody is asked for a key"


def usable(key: str) -> bool:
    """Whether a header can hold it as it is: printable ASCII without spaces around it."""
    return key.isascii() and key.isprintable() and key.strip() == key != ""

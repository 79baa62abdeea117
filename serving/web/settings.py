"""What the gateway is told: from the environment, then from the command line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from serving.keys import UNUSABLE, usable

MEBIBYTE = 1024 * 1024
MAX_PICTURE_BYTES = 16 * MEBIBYTE  # with what is sent around it: the model service takes no larger request
MAX_PIXELS_BYTES = 64 * 1024  # of JSON; 784 numbers need 4 kB
SMALL_BODY_BYTES = 256 * 1024  # what is above it counts towards max_held_bytes


class SettingsError(ValueError):
    """A setting that cannot be; the message names it."""


@dataclass(frozen=True)
class Settings:
    """Settings of one gateway. `api_key` empty: nobody is asked for one."""

    upstream: str = "http://127.0.0.1:8080"
    model_name: str = "emnist"
    api_key: str = field(default="", repr=False)
    upstream_api_key: str = field(default="", repr=False)  # what the model service asks for
    cors_origins: tuple[str, ...] = ()
    max_in_flight: int = 64  # requests that the model service has at a time
    max_held_bytes: int = 64 * MEBIBYTE  # of large bodies, all requests together
    body_timeout_s: float = 20.0  # for a whole upload to arrive
    connect_timeout_s: float = 2.0
    answer_timeout_s: float = 35.0  # the model service's own deadlines are 2 s in its queue and 30 s for the answer
    ready_timeout_s: float = 1.0

    @property
    def longest_answer_s(self) -> float:
        """From a request's first byte of body to its answer."""
        return self.body_timeout_s + self.answer_timeout_s


def from_environment(environment: Mapping[str, str], **given: Any) -> Settings:
    """Settings from variables of the fields' names in capitals, `given` winning over them. Raises SettingsError."""
    values: dict[str, Any] = {}
    for name, default in vars(Settings()).items():
        text = environment.get(name.upper(), "")
        if text or (name == "api_key" and "API_KEY" in environment):  # an empty key must not open what was to be closed
            values[name] = _parsed(name, text, default)
    values.setdefault("upstream_api_key", values.get("api_key", ""))  # one key for both, unless they are told apart
    settings = Settings(**values | {name: value for name, value in given.items() if value is not None})
    parts = urlsplit(settings.upstream)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise SettingsError(f"UPSTREAM must be an address such as http://127.0.0.1:8080, not '{settings.upstream}'")
    return settings


def _parsed(name: str, text: str, default: Any) -> Any:
    if name.endswith("api_key") and not usable(text):
        raise SettingsError(f"{name.upper()} {UNUSABLE}")
    if isinstance(default, str):
        return text
    if isinstance(default, tuple):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    try:
        value = type(default)(text)
    except ValueError:
        value = 0
    if not 0 < value < math.inf:
        raise SettingsError(f"{name.upper()} must be a number above 0, not '{text}'")
    return value

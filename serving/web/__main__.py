"""Run the gateway until SIGTERM or Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

import uvicorn

from serving.web.app import create_app
from serving.web.connections import configuration
from serving.web.settings import Settings, SettingsError, from_environment


class JsonLines(logging.Formatter):
    """A record as one line of JSON; `fields` of the record stand in place of its message."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
        }
        line |= getattr(record, "fields", None) or {"message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)  # the access log tells of every request once


def main(argv: Sequence[str] | None = None) -> int:
    default = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m serving.web", description="The drawing page and its gateway, until Ctrl-C."
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="the address to listen on; 0.0.0.0 for all of this machine; default: %(default)s",
    )
    parser.add_argument("--port", type=int, default=8000, help="default: %(default)s")
    parser.add_argument("--upstream", help=f"where the model service is; default: {default.upstream}")
    parser.add_argument("--model", help=f"the model's name there; default: {default.model_name}")
    arguments = parser.parse_args(argv)
    try:
        settings = from_environment(os.environ, upstream=arguments.upstream, model_name=arguments.model)
    except SettingsError as error:
        print(f"web: {error}", file=sys.stderr)
        return 2
    log_to_stderr()
    config = configuration(create_app(settings), arguments.host, arguments.port, settings.longest_answer_s)
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # uvicorn raises the signal again once it has ended in order
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())

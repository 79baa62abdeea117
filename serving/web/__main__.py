"""Run the gateway until SIGTERM or Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from serving.web.app import create_app
from serving.web.upstream import Upstream

DEFAULT_SOCKETS = Path("/run/emnist")
# HAProxy closes the connections that it no longer needs. Were the gateway first, a request might meet a closed one.
IDLE_CONNECTION_S = 3600
LAST_ANSWERS_S = 5  # HAProxy ends first, so nothing should be in flight


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m serving.web", description="The drawing page and its gateway, behind HAProxy, until Ctrl-C."
    )
    parser.add_argument(
        "--sockets",
        type=Path,
        default=DEFAULT_SOCKETS,
        help="the folder of web.sock, where the gateway listens, and edge.sock, where it asks HAProxy; default:"
        " %(default)s",
    )
    parser.add_argument("--model", default="emnist", help="the model's name; default: %(default)s")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    config = uvicorn.Config(
        create_app(Upstream(arguments.model, arguments.sockets / "edge.sock")),
        uds=str(arguments.sockets / "web.sock"),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=IDLE_CONNECTION_S,
        timeout_graceful_shutdown=LAST_ANSWERS_S,
    )
    # uvicorn raises the signal again once it has ended in order.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())

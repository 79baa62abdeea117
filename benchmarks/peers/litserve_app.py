"""LitServe with its own batching, its queue for more than 100 requests a second, and as many HTTP processes as workers.

python -m benchmarks.peers.litserve_app PORT
"""

import sys
from typing import Annotated

import litserve
from fastapi import Body, Response

from benchmarks.peers.setting import PATH, TIMEOUT_S, Setting, load_model
from handlers.protocols.service import Reply, answer_rows

Picture = Annotated[bytes, Body(media_type="application/octet-stream")]


class Characters(litserve.LitAPI):
    """One picture a request, as its body. Without batching, LitServe gives and takes one of what it else gives lists
    of.
    """

    def setup(self, device: str) -> None:  # noqa: ARG002  LitServe's signature
        self.recognizer = load_model(self.max_batch_size)

    def decode_request(self, request: Picture) -> bytes:
        return request

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return list(inputs)

    def predict(self, x: list[bytes] | bytes) -> list[Reply] | Reply:
        replies = answer_rows(self.recognizer, [{"body": picture} for picture in ([x] if isinstance(x, bytes) else x)])
        return replies[0] if isinstance(x, bytes) else replies

    def unbatch(self, output: list[Reply]) -> list[Reply]:
        return output

    def encode_response(self, output: Reply) -> Response:
        return Response(output.body, output.status, media_type="application/json")


def main() -> None:
    setting = Setting.from_environment()
    api = Characters(max_batch_size=setting.batch, batch_timeout=setting.delay_ms / 1000, api_path=PATH)
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=setting.workers, timeout=TIMEOUT_S, fast_queue=True
    )
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False, access_log=False
    )


if __name__ == "__main__":
    main()

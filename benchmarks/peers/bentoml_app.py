"""BentoML with its adaptive batching, which chooses by itself how long a batch waits.

    bentoml serve benchmarks.peers.bentoml_app:Characters

The descriptors of input and output are our own, so that a picture is the request's body and each answer has its own
status: BentoML's would wrap every request into a JSON list, and give every answer status 200.
"""

import bentoml
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.peers.setting import PATH, TIMEOUT_S, Setting, load_model
from handlers.protocols.service import Reply, answer_rows

SETTING = Setting.from_environment()  # BentoML's decorators need it


class Pictures(bentoml.IODescriptor):
    """The pictures of one request, of which there is one."""

    pictures: list[bytes]

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> "Pictures":  # noqa: ARG003  BentoML's signature
        return cls.model_construct(pictures=[await request.body()])


class Answers(bentoml.IODescriptor):
    """The answers to one request."""

    @classmethod
    async def to_http_response(cls, obj: list[Reply], serde: object) -> Response:  # noqa: ARG003  BentoML's signature
        return Response(obj[0].body, obj[0].status, media_type="application/json")


@bentoml.service(
    workers=SETTING.workers,
    traffic={"timeout": TIMEOUT_S},
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
)
class Characters:
    def __init__(self) -> None:
        self.recognizer = load_model(SETTING.batch)

    # Batches of one are no batches to BentoML.
    @bentoml.api(
        route=PATH,
        input_spec=Pictures,
        output_spec=Answers,
        batchable=SETTING.batch > 1,
        max_batch_size=max(2, SETTING.batch),
    )
    def predict(self, pictures: list[bytes]) -> list[Reply]:
        return answer_rows(self.recognizer, [{"body": picture} for picture in pictures])

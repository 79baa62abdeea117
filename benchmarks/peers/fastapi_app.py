"""FastAPI on uvicorn: each worker process collects the pictures that arrive close together and reads them in a thread.

uvicorn --factory benchmarks.peers.fastapi_app:make_app --workers N --no-access-log
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

from fastapi import FastAPI, Request, Response

from benchmarks.peers.setting import PATH, Setting, load_model
from handlers.protocols.service import Reply, answer_rows


class Batcher:
    """Pictures go into batches of up to `setting.batch`; one that is not full waits `setting.delay_ms` for more."""

    def __init__(self, setting: Setting) -> None:
        self._batch, self._delay_s = setting.batch, setting.delay_ms / 1000
        self._recognizer = load_model(setting.batch)
        self._waiting: deque[tuple[bytes, asyncio.Future[Reply]]] = deque()
        self._some, self._full = asyncio.Event(), asyncio.Event()
        self._thread = ThreadPoolExecutor(1)

    async def answer(self, picture: bytes) -> Reply:
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting.append((picture, future))
        self._some.set()
        if len(self._waiting) >= self._batch:
            self._full.set()
        return await future

    async def run(self) -> None:
        """Answer batches until it is cancelled. While the thread reads one, the next one gathers."""
        loop = asyncio.get_running_loop()
        while True:
            await self._some.wait()
            if len(self._waiting) < self._batch:
                self._full.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._full.wait(), self._delay_s)
            jobs = [self._waiting.popleft() for _ in range(min(self._batch, len(self._waiting)))]
            if not self._waiting:
                self._some.clear()
            rows = [{"body": picture} for picture, _ in jobs]
            try:
                replies = await loop.run_in_executor(self._thread, answer_rows, self._recognizer, rows)
            except Exception as error:  # whatever it was, these requests get it and the next batch does not
                for _, future in jobs:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), reply in zip(jobs, replies, strict=True):
                if not future.done():  # the client may have gone
                    future.set_result(reply)


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.batcher = Batcher(Setting.from_environment())
    task = asyncio.create_task(app.state.batcher.run())
    yield
    task.cancel()


async def predict(request: Request) -> Response:
    reply = await request.app.state.batcher.answer(await request.body())
    return Response(reply.body, reply.status, media_type="application/json")


def make_app() -> FastAPI:
    app = FastAPI(lifespan=lifespan)
    app.add_api_route(PATH, predict, methods=["POST"])
    return app

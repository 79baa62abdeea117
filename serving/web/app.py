"""The gateway's routes: the page, POST /api/predict, and the API's description."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from serving.web.errors import ApiError, on_api_error, on_fault, on_http_error, on_invalid_parameter
from serving.web.pictures import content_of
from serving.web.schemas import HEADERS, REQUEST_BODY, Answer, Parameters, Pixels, error_responses
from serving.web.upstream import Upstream

STATIC = Path(__file__).resolve().parent / "static"
SWAGGER_FILES = ("swagger-ui.css", "swagger-ui-bundle.js")
REVALIDATE = {"Cache-Control": "no-cache"}  # kept by the browser, and asked for by its ETag
DESCRIPTION = "Reads one handwritten character in a picture. The page at `/` is a client of this API."
# For the description alone: HAProxy asks for the key, if the service has one.
KEYS = [Security(APIKeyHeader(name="X-API-Key", auto_error=False)), Security(HTTPBearer(auto_error=False))]


def create_app(upstream: Upstream) -> FastAPI:
    """The gateway as an ASGI application, which asks `upstream` for answers and closes it at its end."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await upstream.close()

    app = FastAPI(
        title="Handwritten characters",
        version="1",
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.openapi_version = "3.0.3"
    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_invalid_parameter)
    app.add_exception_handler(Exception, on_fault)
    _add_predict(app, upstream)
    app.router.routes += _pages()
    describe(app)
    return app


def _add_predict(app: FastAPI, upstream: Upstream) -> None:
    @app.post(
        "/api/predict",
        operation_id="predict",
        tags=["Reading"],
        summary="Read a character",
        dependencies=KEYS,
        responses={200: {"model": Answer, "description": "The answer", "headers": HEADERS}, **error_responses()},
        openapi_extra={"requestBody": REQUEST_BODY},
    )
    async def predict(request: Request, parameters: Annotated[Parameters, Query()]) -> Response:
        content = await content_of(request)
        reading, milliseconds = await upstream.read(content, parameters.alphabet, parameters.top_k, request.headers)
        body = {
            "character": reading.character,
            "ascii": reading.ascii,
            "confidence": reading.confidence,
            "alphabet": parameters.alphabet,
            "alternatives": reading.alternatives,
            "image": reading.image,
            "milliseconds": round(milliseconds, 1),
            "model_version": reading.model_version,
        }
        return JSONResponse(body, headers={"X-Model-Version": reading.model_version})


class Static(StaticFiles):
    """Files that a browser keeps and revalidates."""

    def file_response(self, *arguments: Any, **options: Any) -> Response:
        response = super().file_response(*arguments, **options)
        response.headers.update(REVALIDATE)
        return response


def _pages() -> list[Route | Mount]:
    async def index(_request: Request) -> Response:
        return FileResponse(STATIC / "index.html", headers=REVALIDATE)

    async def docs(_request: Request) -> Response:
        return FileResponse(STATIC / "docs.html", headers=REVALIDATE)

    def swagger(file: Path) -> Route:
        async def send(_request: Request) -> Response:
            return FileResponse(file, headers=REVALIDATE)

        return Route(f"/docs/{file.name}", send)

    folder = swagger_folder()
    files = [swagger(folder / name) for name in SWAGGER_FILES]
    return [Route("/", index), Route("/docs", docs), *files, Mount("/static", Static(directory=STATIC), name="static")]


def swagger_folder() -> Path:
    """Where the package swagger-ui-bundle keeps its files; found, not imported, for it would bring a template
    engine.
    """
    spec = importlib.util.find_spec("swagger_ui_bundle")
    if spec is None or spec.origin is None:
        raise RuntimeError(
            "the Python package 'swagger-ui-bundle' is missing; `make` installs what is needed into .venv"
        )
    (file,) = Path(spec.origin).parent.glob("vendor/*/swagger-ui-bundle.js")
    return file.parent


def describe(app: FastAPI) -> None:
    """Add to the OpenAPI description what no route mentions by itself: the schema of the pixels."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        description = made()
        description["components"]["schemas"].setdefault("Pixels", Pixels.model_json_schema())
        return description

    app.openapi = openapi  # type: ignore[method-assign]

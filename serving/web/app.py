"""The gateway's routes: the page, POST /api/predict, /live and /ready, and the API's description."""

from __future__ import annotations

import hmac
import importlib.util
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
from fastapi import FastAPI, Query, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from serving.web.context import Context
from serving.web.errors import ApiError, on_api_error, on_http_error, on_invalid_parameter
from serving.web.pictures import content_of
from serving.web.schemas import HEADERS, REQUEST_BODY, Answer, Error, Parameters, Pixels, Status, error_responses
from serving.web.settings import Settings
from serving.web.uploads import Uploads
from serving.web.upstream import Upstream

STATIC = Path(__file__).resolve().parent / "static"
SWAGGER_FILES = ("swagger-ui.css", "swagger-ui-bundle.js")
REVALIDATE = {"Cache-Control": "no-cache"}  # kept by the browser, and asked for by its ETag
DESCRIPTION = "Reads one handwritten character in a picture. The page at `/` is a client of this API."


def create_app(settings: Settings, transport: httpx.AsyncBaseTransport | None = None) -> FastAPI:
    """The gateway as an ASGI application; `transport` replaces the network to the model service."""
    upstream = Upstream(settings, transport)

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
    _add_predict(app, upstream, settings.api_key)
    _add_probes(app, upstream)
    app.router.routes += _pages()
    describe(app)
    # The last one added is the outermost.
    app.add_middleware(Uploads, settings=settings)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-API-Key", "X-Request-Id", "traceparent", "tracestate"],
            expose_headers=["Retry-After", "X-Model-Version", "X-Request-Id"],
        )
    app.add_middleware(Context)
    return app


def _add_predict(app: FastAPI, upstream: Upstream, api_key: str) -> None:
    @app.post(
        "/api/predict",
        operation_id="predict",
        tags=["Reading"],
        summary="Read a character",
        dependencies=keys(api_key),
        responses={200: {"model": Answer, "description": "The answer", "headers": HEADERS}, **error_responses()},
        openapi_extra={"requestBody": REQUEST_BODY},
    )
    async def predict(request: Request, parameters: Annotated[Parameters, Query()]) -> Response:
        content = await content_of(request)
        reading, milliseconds = await upstream.read(
            content, parameters.alphabet, parameters.top_k, request.state.upstream_headers
        )
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


def _add_probes(app: FastAPI, upstream: Upstream) -> None:
    @app.get(
        "/live",
        operation_id="live",
        tags=["Probes"],
        summary="Whether the gateway runs",
        responses={200: {"model": Status}},
    )
    async def live() -> Response:
        return JSONResponse({"status": "live"})

    not_ready = {"model": Error, "description": "`not_ready`: the model service is away"}

    @app.get(
        "/ready",
        operation_id="ready",
        tags=["Probes"],
        summary="Whether the model service answers",
        responses={200: {"model": Status}, 503: not_ready},
    )
    async def ready() -> Response:
        if not await upstream.ready():
            raise ApiError("not_ready", "the model service is not ready")
        return JSONResponse({"status": "ready"})


def keys(api_key: str) -> list[Any]:
    """Dependencies that ask for the key in X-API-Key or as a bearer token; none where there is no key."""
    if not api_key:
        return []
    expected = api_key.encode()

    def check(
        header: Annotated[str | None, Security(APIKeyHeader(name="X-API-Key", auto_error=False))],
        bearer: Annotated[Any, Security(HTTPBearer(auto_error=False))],
    ) -> None:
        given = header if header is not None else bearer.credentials if bearer else ""
        if not hmac.compare_digest(given.encode("latin-1"), expected):
            raise ApiError(
                "unauthorized",
                "an API key is needed, in the header X-API-Key or as a bearer token"
                if not given
                else "this API key is not valid",
            )

    return [Security(check)]


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

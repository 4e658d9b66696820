"""The routes: what the page asks, and what it is answered."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

import vidup
from vidup.errors import ConfigError, VidupError, first_line
from vidup.ui import forms
from vidup.ui.films import VIDEOS, Films, jpeg, look
from vidup.ui.safety import Folders, Guard, Refused, listing, refusal

log = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
_MOST_BYTES = 1 << 20
"""Of a request that is no upload."""

Answer = dict[str, Any] | Response


class Server:
    """Answers the page; what it needs for that is kept here."""

    def __init__(self, folders: Folders) -> None:
        self.folders, self.films = folders, Films()

    def start(self, query: dict[str, Any]) -> Answer:
        """What the page needs at first."""
        return {
            "version": vidup.__version__,
            "folders": [str(root) for root in self.folders.roots],
            "presets": list(forms.presets()),
            "models": [{"name": name, "line": line} for name, line in vidup.models().items()],
            "fields": list(forms.described()),
        }

    def folder(self, query: dict[str, Any]) -> Answer:
        """What is in a folder."""
        path = self.folders.folder(query.get("path") or str(self.folders.roots[0]))
        return listing(self.folders, path, VIDEOS)

    def look(self, body: dict[str, Any]) -> Answer:
        """A file's facts, the plan and the notes."""
        source = self.folders.file(body.get("input", ""))
        return look(source, forms.read(body.get("settings", {}), self.folders))

    def frame(self, query: dict[str, Any]) -> Answer:
        """A frame of the source."""
        source = self.folders.file(query.get("input", ""))
        at, height = number(query, "at"), int(number(query, "height")) or None
        return Response(jpeg(self.films.picture(source, at, vidup.Settings()), height), media_type="image/jpeg")

    def routes(self) -> list[Route | Mount]:
        """All of them."""
        return [
            Route("/api/start", _query(self.start)),
            Route("/api/folder", _query(self.folder)),
            Route("/api/look", _body(self.look), methods=["POST"]),
            Route("/api/frame", _query(self.frame)),
            Mount("/", StaticFiles(directory=PAGE, html=True)),
        ]

    def close(self) -> None:
        """Let everything go."""
        self.films.close()


def number(given: dict[str, Any], name: str) -> float:
    """A number of a request, 0 where there is none; not below 0."""
    try:
        found = float(given.get(name) or 0)
    except (TypeError, ValueError):
        found = -1.0
    if not 0 <= found < 1e9:
        raise ConfigError(f"{name} = {str(given.get(name))[:80]!r}: expected a number of 0 or more")
    return found


Endpoint = Callable[[Request], Awaitable[Response]]


def _query(handle: Callable[[dict[str, Any]], Answer]) -> Endpoint:
    """A handler of what stands in the address, run in a thread."""

    async def answer(request: Request) -> Response:
        return await _answered(handle, {**request.query_params, **request.path_params})

    return answer


def _body(handle: Callable[[dict[str, Any]], Answer]) -> Endpoint:
    """A handler of a JSON object, run in a thread."""

    async def answer(request: Request) -> Response:
        data = b""
        async for part in request.stream():
            data += part
            if len(data) > _MOST_BYTES:
                return refusal(f"the request is of more than {_MOST_BYTES} bytes", 413)
        try:
            body = json.loads(data or b"{}")
        except (ValueError, RecursionError):
            return refusal("the request is no JSON", 400)
        if not isinstance(body, dict):
            return refusal("the request is no JSON object", 400)
        return await _answered(handle, {**body, **request.path_params})

    return answer


async def _answered(handle: Callable[[dict[str, Any]], Answer], given: dict[str, Any]) -> Response:
    try:
        answer = await run_in_threadpool(handle, given)
    except Refused as error:
        return refusal(str(error), error.status)
    except VidupError as error:
        return refusal(str(error), 400)
    except OSError as error:
        return refusal(first_line(error), 400)
    except Exception as error:  # a fault of the code: told, and logged whole
        log.exception("%s", error)
        return refusal(f"{type(error).__name__}: {first_line(error)}", 500)
    return answer if isinstance(answer, Response) else JSONResponse(answer)


def application(folders: Folders, token: str, host: str, port: int) -> Starlette:
    """The whole server, for uvicorn or a test."""
    server = Server(folders)

    @asynccontextmanager
    async def living(app: Starlette) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(server.close)

    return Starlette(
        routes=server.routes(), middleware=[Middleware(Guard, token=token, host=host, port=port)], lifespan=living
    )

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
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

import vidup
from vidup.errors import ConfigError, VidupError, first_line
from vidup.ui import forms, places
from vidup.ui.films import VIDEOS, Films, Looks, estimate, jpeg, told
from vidup.ui.previews import Previews
from vidup.ui.safety import Folders, Guard, Refused, listing, refusal

log = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
_MOST_BYTES = 1 << 20
"""Of a request that is no upload."""

Answer = dict[str, Any] | Response
Given = dict[str, Any]
"""What stands in a request."""


class Server:
    """Answers the page; what it needs for that is kept here."""

    def __init__(self, folders: Folders) -> None:
        self.folders, self.films, self.looks = folders, Films(), Looks()
        self.previews = Previews(self.films, places.of_this_process(places.made(places.state() / "previews")))

    def start(self, query: Given) -> Answer:
        """What the page needs at first."""
        device = vidup.devices()[0]
        return {
            "version": vidup.__version__,
            "folders": [str(root) for root in self.folders.roots],
            "presets": list(forms.presets(self.folders)),
            "preset": "mini" if device == "cpu" else "balanced",
            "models": [{"name": name, "line": line} for name, line in vidup.models().items()],
            "device": device,
            "fields": list(forms.described()),
        }

    def folder(self, query: Given) -> Answer:
        """What is in a folder."""
        path = self.folders.folder(query.get("path") or str(self.folders.roots[0]))
        return listing(self.folders, path, VIDEOS)

    def look(self, body: Given) -> Answer:
        """A file's facts, the plan and the notes."""
        source, form = self._asked(body)
        output = self.folders.output(body["output"]) if body.get("output") else None
        found, last = self.looks.plan(source, form, output), self.previews.last_of(source, form)
        known = estimate(found, last.seconds_a_frame, last.kind == "frame") if last is not None else None
        return told(found, form, known)

    def frame(self, query: Given) -> Answer:
        """A frame of the source."""
        source = self.folders.file(query.get("input", ""))
        at, height = number(query, "at"), int(number(query, "height")) or None
        picture = jpeg(self.films.picture(source, at, vidup.Settings()), height)
        return Response(picture, media_type="image/jpeg", headers={"cache-control": "private, max-age=3600"})

    def preview(self, body: Given) -> Answer:
        """Ask for a preview."""
        source, form = self._asked(body)
        replaces = [str(one) for one in body.get("replaces") or []]
        return {"id": self.previews.begin(source, number(body, "at"), form, body.get("kind", "frame"), replaces)}

    def preview_state(self, query: Given) -> Answer:
        """How far a preview is."""
        one = self.previews.find(query["id"])
        found = self.looks.plan(one.source, one.form, None) if one.seconds_a_frame is not None else None
        ending, done = "png" if one.kind == "frame" else "mp4", one.state == "done"
        return {
            "id": one.id, "state": one.state, "done": one.done, "line": one.line, "error": one.error or None,
            "seconds_a_frame": one.seconds_a_frame,
            "estimate": found and estimate(found, one.seconds_a_frame, one.kind == "frame"),
            "before": f"/api/preview/{one.id}/before.{ending}" if done else None,
            "after": f"/api/preview/{one.id}/after.{ending}" if done else None,
            "width": one.size[0], "height": one.size[1], "fps": round(one.rate, 3),
        }  # fmt: skip

    def preview_file(self, query: Given) -> Answer:
        """A picture or a clip of a preview."""
        path = self.previews.find(query["id"]).folder / query["name"]
        if query["name"] not in ("before.png", "after.png", "before.mp4", "after.mp4") or not path.is_file():
            raise Refused(f"{query['name']}: there is no such file", 404)
        return FileResponse(path, headers={"cache-control": "private, max-age=3600"})

    def preview_end(self, query: Given) -> Answer:
        """Stop a preview."""
        self.previews.cancel(query["id"])
        return {}

    def preset(self, body: Given) -> Answer:
        """Save settings as a preset."""
        form = forms.read(body.get("settings", {}), self.folders)
        return {"path": str(forms.save(str(body.get("name", "")), form, self.folders, bool(body.get("replace"))))}

    def _asked(self, body: Given) -> tuple[Path, forms.Form]:
        return self.folders.file(body.get("input", "")), forms.read(body.get("settings", {}), self.folders)

    def routes(self) -> list[Route | Mount]:
        """All of them."""
        return [
            Route("/api/start", _query(self.start)),
            Route("/api/folder", _query(self.folder)),
            Route("/api/look", _body(self.look), methods=["POST"]),
            Route("/api/frame", _query(self.frame)),
            Route("/api/preview", _body(self.preview), methods=["POST"]),
            Route("/api/preview/{id}", _query(self.preview_state)),
            Route("/api/preview/{id}", _query(self.preview_end), methods=["DELETE"]),
            Route("/api/preview/{id}/{name}", _query(self.preview_file)),
            Route("/api/preset", _body(self.preset), methods=["POST"]),
            Mount("/", StaticFiles(directory=PAGE, html=True)),
        ]

    def close(self) -> None:
        """Let everything go."""
        self.previews.close()
        self.films.close()


def number(given: Given, name: str) -> float:
    """A number of a request, 0 where there is none; not below 0."""
    try:
        found = float(given.get(name) or 0)
    except (TypeError, ValueError):
        found = -1.0
    if not 0 <= found < 1e9:
        raise ConfigError(f"{name} = {str(given.get(name))[:80]!r}: expected a number of 0 or more")
    return found


Endpoint = Callable[[Request], Awaitable[Response]]


def _query(handle: Callable[[Given], Answer]) -> Endpoint:
    """A handler of what stands in the address, run in a thread."""

    async def answer(request: Request) -> Response:
        return await _answered(handle, {**request.query_params, **request.path_params})

    return answer


def _body(handle: Callable[[Given], Answer]) -> Endpoint:
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


async def _answered(handle: Callable[[Given], Answer], given: Given) -> Response:
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

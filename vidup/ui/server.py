"""The routes and their handlers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

import vidup
from vidup.errors import VidupError
from vidup.paths import VIDEOS, check_pair
from vidup.ui import forms, places, runs
from vidup.ui.films import PICTURES, Films, jpeg, newest_picture, newest_time
from vidup.ui.looks import Looks, as_json
from vidup.ui.making import Preview
from vidup.ui.previews import Previews
from vidup.ui.requests import Answer, Given, from_body, from_query, number, upload
from vidup.ui.runs import Runs
from vidup.ui.safety import Folders, Guard, Refused, listing

PAGE = Path(__file__).parent / "page"


class Server:
    """The handlers of all routes, named as in `routes`, and what they share."""

    def __init__(self, folders: Folders, apart: bool) -> None:
        self.folders, self.films = folders, Films()
        self.looks = Looks(apart)
        home = places.state()
        self.previews = Previews(self.films, places.of_this_process(places.made(home / "previews")))
        self.runs = Runs(places.made(home / "runs"))

    def start(self, query: Given) -> Answer:
        """What the page needs at its start."""
        return {
            "folders": [str(root) for root in self.folders.roots],
            "presets": list(forms.presets(self.folders)),
            "preset": "mini" if vidup.Runtime.devices()[0] == "cpu" else "balanced",
            "models": [{"name": name, "line": line} for name, line in vidup.Settings.models().items()],
            "fields": list(forms.described()),
        }

    def folder(self, query: Given) -> Answer:
        path = self.folders.folder(query.get("path") or str(self.folders.roots[0]))
        return listing(self.folders, path, [*VIDEOS, *PICTURES])

    def look(self, body: Given) -> Answer:
        source, form = self._asked(body)
        output = self._output(body["output"], source) if body.get("output") else None
        (found, more), last = self.looks.plan(source, form, output), self.previews.last_of(source, form)
        return as_json(found, form, None if last is None else last.estimate(found), more)

    def frame(self, query: Given) -> Answer:
        source = self.folders.file(query.get("input", ""))
        at, height = number(query, "at"), int(number(query, "height")) or None
        picture = jpeg(self.films.picture(source, at, vidup.Settings()), height)
        return Response(picture, media_type="image/jpeg", headers={"cache-control": "private, max-age=3600"})

    def preview(self, body: Given) -> Answer:
        source, form = self._asked(body)
        return {"id": self.previews.begin(source, number(body, "at"), form, body.get("kind", "frame"))}

    def preview_state(self, query: Given) -> Answer:
        one = self.previews.find(query["id"])
        before, after = ("before.png", "after.png") if one.kind == "frame" else ("before.mp4", "after.mp4")
        address, done = f"/api/preview/{one.id}", one.state == "done"
        return {
            "id": one.id, "state": one.state, "done": one.done, "line": one.line, "error": one.error or None,
            "seconds_a_frame": one.seconds_a_frame,
            "estimate": self._estimate(one) if done else None,
            "before": f"{address}/{before}" if done else None,
            "after": f"{address}/{after}" if done else None,
            "width": one.size[0], "height": one.size[1], "fps": round(one.rate, 3),
        }  # fmt: skip

    def preview_file(self, query: Given) -> Answer:
        path = self.previews.find(query["id"]).folder / query["name"]
        if query["name"] not in ("before.png", "after.png", "before.mp4", "after.mp4") or not path.is_file():
            raise Refused(f"{query['name']}: there is no such file", 404)
        return FileResponse(path, headers={"cache-control": "private, max-age=3600"})

    def preview_end(self, query: Given) -> Answer:
        self.previews.cancel(query["id"])
        return {}

    def preset(self, body: Given) -> Answer:
        """Save settings as a preset."""
        form = forms.read(body.get("settings", {}), self.folders)
        return {"path": str(forms.save(str(body.get("name", "")), form, self.folders, bool(body.get("replace"))))}

    def run(self, body: Given) -> Answer:
        source, form = self._asked(body)
        output = self._output(body["output"], source) if body.get("output") else None
        # Invalid settings are refused now rather than when it starts, and a default name that links to the outside.
        output = self._output(str(self.looks.plan(source, form, output)[0].output), source)
        if output.exists() and not body.get("replace"):
            raise Refused(f"{output}: exists; replace it, or give another name", 409)
        name = self.runs.add(form.arguments(source, output, bool(body.get("replace"))), source, output)
        self.previews.unload()
        self.runs.wake()
        return {"id": name}

    def all_runs(self, query: Given) -> Answer:
        """All runs of the user; pictures only of those in the folders."""
        self.runs.wake()
        found = []
        for run in self.runs.all():
            at = newest_time(run.folder / "newest") if self._is_within(run) else None
            address = f"/api/runs/{run.id}"
            newest = {"at": at, "before": f"{address}/before.jpg?at={at}", "after": f"{address}/after.jpg?at={at}"}
            found.append({**runs.as_json(run), "command": forms.shown(run.command), "newest": newest if at else None})
        return {"runs": found}

    def run_picture(self, query: Given) -> Answer:
        """The newest finished picture of a run, or its source at the same size."""
        run = self.runs.find(query["id"])
        self.folders.within(str(run.input))
        return Response(newest_picture(run.folder / "newest", query["name"]), media_type="image/jpeg")

    def run_change(self, body: Given) -> Answer:
        change = {"pause": self.runs.pause, "resume": self.runs.resume}.get(body["change"])
        if change is None:
            raise Refused("there is no such page", 404)
        change(body["id"])
        self.runs.wake()
        return {}

    def run_end(self, query: Given) -> Answer:
        self.runs.forget(query["id"])
        self.runs.wake()
        return {}

    def _is_within(self, run: runs.Run) -> bool:
        try:
            return bool(self.folders.within(str(run.input)))
        except Refused:
            return False

    def _estimate(self, one: Preview) -> float | None:
        """How long the whole film takes, by this preview."""
        with suppress(VidupError, OSError):  # the film may be gone
            return one.estimate(self.looks.plan(one.source, one.form, None)[0])
        return None

    def _asked(self, body: Given) -> tuple[Path, forms.Form]:
        return self.folders.file(body.get("input", "")), forms.read(body.get("settings", {}), self.folders)

    def _output(self, path: str, source: Path) -> Path:
        """An output in the folders, which can be written."""
        output = self.folders.within(path)
        check_pair(source, output, overwrite=True)
        return output

    def routes(self) -> list[Route | Mount]:
        return [
            Route("/api/start", from_query(self.start)),
            Route("/api/folder", from_query(self.folder)),
            Route("/api/look", from_body(self.look), methods=["POST"]),
            Route("/api/frame", from_query(self.frame)),
            Route("/api/preview", from_body(self.preview), methods=["POST"]),
            Route("/api/preview/{id}", from_query(self.preview_state)),
            Route("/api/preview/{id}", from_query(self.preview_end), methods=["DELETE"]),
            Route("/api/preview/{id}/{name}", from_query(self.preview_file)),
            Route("/api/preset", from_body(self.preset), methods=["POST"]),
            Route("/api/upload", upload(self.folders), methods=["POST"]),
            Route("/api/runs", from_body(self.run), methods=["POST"]),
            Route("/api/runs", from_query(self.all_runs)),
            Route("/api/runs/{id}", from_query(self.run_end), methods=["DELETE"]),
            Route("/api/runs/{id}/{change}", from_body(self.run_change), methods=["POST"]),
            Route("/api/runs/{id}/{name}", from_query(self.run_picture)),
            Mount("/", StaticFiles(directory=PAGE, html=True)),
        ]

    def close(self) -> None:
        self.previews.close()
        self.looks.close()
        self.films.close()


def application(folders: Folders, token: str, host: str, port: int, apart: bool = False) -> Starlette:
    """The ASGI application.

    Args:
        apart: plan in a separate process; it is started, and `mini` is loaded, in advance.
    """
    server = Server(folders, apart)

    @asynccontextmanager
    async def living(app: Starlette) -> AsyncIterator[None]:
        if apart:
            server.runs.wake()  # what was queued before a reboot
            server.looks.preload()
            server.previews.preload()
        yield
        await run_in_threadpool(server.close)

    return Starlette(
        routes=server.routes(), middleware=[Middleware(Guard, token=token, host=host, port=port)], lifespan=living
    )

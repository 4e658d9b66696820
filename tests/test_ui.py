"""The page's server: who may ask it, for what, and what it answers."""

from __future__ import annotations

import io
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="the extra vidup[ui] is not installed")

from starlette.testclient import TestClient

import vidup
from vidup.ui import forms
from vidup.ui.safety import Folders
from vidup.ui.server import application

TOKEN = "a-token-of-this-test"
JSON = {"content-type": "application/json"}


def client_of(folder: Path, **headers: str) -> TestClient:
    app = application(Folders([folder]), TOKEN, "127.0.0.1", 7860)
    return TestClient(app, base_url="http://127.0.0.1:7860", headers={"x-vidup-token": TOKEN, **headers})


@pytest.fixture(autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))


@pytest.fixture
def page(make_clip: Any, tmp_path: Path) -> Any:
    make_clip()
    with client_of(tmp_path) as client:
        yield client


def test_the_start_has_every_setting_once_with_its_help(page: TestClient):
    from dataclasses import fields

    found = page.get("/api/start").json()
    names = [field["name"] for field in found["fields"]]
    wanted = [spec.name for config in (vidup.Settings, vidup.Runtime) for spec in fields(config)]
    assert names == [name for name in wanted if name != "overwrite"]
    assert all(field["help"] and field["group"] for field in found["fields"])
    assert {preset["name"] for preset in found["presets"]} == set(vidup.Settings.presets())
    assert {"x4", "mini", "bicubic"} <= {model["name"] for model in found["models"]}


def test_a_file_is_chosen_and_looked_at(page: TestClient, tmp_path: Path):
    (file,) = page.get("/api/folder").json()["files"]
    assert file["name"] == "clip.mp4" and file["video"]
    body = {"input": str(tmp_path / "clip.mp4"), "settings": {"model": "nearest", "scale": 2}}
    found = page.post("/api/look", json=body).json()
    assert found["result"] == [128, 96] and found["frames"] == 12 and not found["still"]
    assert found["command"].endswith("--model nearest --scale 2")
    picture = page.get("/api/frame", params={"input": body["input"], "at": 0.2, "height": 24})
    assert picture.headers["content-type"] == "image/jpeg" and picture.content[:2] == b"\xff\xd8"


def test_who_has_no_token_gets_nothing(page: TestClient, tmp_path: Path):
    del page.headers["x-vidup-token"]
    for path in ("/", "/api/start", "/api/folder", f"/api/frame?input={tmp_path}/clip.mp4"):
        assert page.get(path).status_code == 403
    assert page.get("/?token=another").status_code == 403
    first = page.get(f"/?token={TOKEN}", follow_redirects=False)
    assert first.status_code == 303 and first.headers["location"] == "/"
    assert (
        "httponly" in first.headers["set-cookie"].lower() and "samesite=strict" in first.headers["set-cookie"].lower()
    )
    assert page.get("/").status_code == 200  # by the cookie


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example:7860"}, 421),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:1"}, 403),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": ""}, 415),
        ({"origin": "http://127.0.0.1:7860"}, 200),
    ],
)
def test_another_site_cannot_drive_it(page: TestClient, tmp_path: Path, headers: dict[str, str], status: int):
    body = '{"input": "clip.mp4", "settings": {"model": "nearest"}}'
    assert page.post("/api/look", content=body, headers={**JSON, **headers}).status_code == status


def test_nothing_outside_of_the_folders_is_read(tmp_path: Path, make_clip: Any):
    inside, clip = tmp_path / "inside", make_clip()
    inside.mkdir()
    (inside / "film.mp4").mkdir()
    (inside / "out.mp4").symlink_to(clip)
    (inside / "up").symlink_to(tmp_path)
    os.mkfifo(inside / "pipe.mp4")
    with client_of(inside) as client:
        names = client.get("/api/folder").json()
        assert (names["folders"], names["files"], names["parent"]) == (["film.mp4"], [], None)
        for path in (
            "out.mp4",
            "../clip.mp4",
            str(clip),
            "up/clip.mp4",
            "/dev/zero",
            "~/x",
            "pipe.mp4",
            "film.mp4",
            "a\0b",
        ):
            answer = client.post("/api/look", json={"input": path, "settings": {"model": "nearest"}})
            assert answer.status_code in (400, 403) and "\n" not in answer.json()["error"], path
        assert client.get("/api/folder", params={"path": "up"}).status_code == 403
        for settings in ({"preset": str(tmp_path / "x.toml")}, {"model": "../a.pth"}, {"vae": "/etc"}):
            answer = client.post("/api/look", json={"input": "film.mp4", "settings": settings})
            assert answer.status_code in (400, 403)


def ended(client: TestClient, name: str) -> dict[str, Any]:
    """A preview, once it has ended."""
    for _ in range(3000):
        found: dict[str, Any] = client.get(f"/api/preview/{name}").json()
        if found["state"] not in ("waiting", "running"):
            return found
        time.sleep(0.01)
    raise AssertionError(found)


def test_a_preview_of_a_frame_is_what_a_run_makes_of_it(page: TestClient, tmp_path: Path):
    clip, settings = tmp_path / "clip.mp4", {"model": "nearest", "scale": 4}
    body = {"input": str(clip), "at": 0.21, "settings": settings, "kind": "frame"}
    found = ended(page, page.post("/api/preview", json=body).json()["id"])
    assert (found["state"], found["error"], found["width"], found["height"]) == ("done", None, 256, 192)
    before, after = (
        np.asarray(Image.open(io.BytesIO(page.get(found[which]).content)), float) for which in ("before", "after")
    )
    with vidup.open(clip) as video, vidup.Upscaler(vidup.Settings(**settings)) as upscaler:
        made = upscaler(video.at(0.21).rgb()).astype(float)
    assert before.shape == after.shape == made.shape
    assert (after == made).all() and abs(before - made).mean() > 1
    known = page.post("/api/look", json=body).json()["estimate"]
    assert known == pytest.approx(12 * found["seconds_a_frame"], abs=0.01) and known == found["estimate"]


def test_a_preview_of_a_frame_knows_how_the_film_was_encoded(page: TestClient, tmp_path: Path, monkeypatch: Any):
    given: list[vidup.Settings] = []

    def upscale(self: vidup.Upscaler, *paths: Any, **more: Any) -> None:
        given.append(self.settings)
        raise vidup.Stopped

    monkeypatch.setattr(vidup.Upscaler, "upscale", upscale)
    body = {"input": "clip.mp4", "at": 0, "settings": {"model": "mini", "codec": "libx265", "start": 1, "seed": 5}}
    assert ended(page, page.post("/api/preview", json=body).json()["id"])["state"] == "stopped"
    with vidup.open(tmp_path / "clip.mp4") as video:
        assert given[0].quantiser == video.quantiser > 0
    assert (given[0].codec, given[0].start, given[0].seed) == (None, 0, 5)


def test_a_moving_preview_is_two_seconds_before_and_after_of_equal_frames(page: TestClient, make_clip: Any):
    clip = make_clip("long.mp4", times=tuple(range(0, 30 * 1280, 1280)), size=(32, 24), rotate=90)
    body = {"input": str(clip), "at": 1.6, "settings": {"model": "nearest", "scale": 2}, "kind": "moving"}
    found = ended(page, page.post("/api/preview", json=body).json()["id"])
    assert (found["state"], found["error"]) == ("done", None)
    times = []
    for which in ("before", "after"):
        answer = page.get(found[which], headers={"range": "bytes=0-99"})
        assert answer.status_code == 206 and answer.headers["content-type"] == "video/mp4"
        path = clip.with_name(f"{which}.mp4")
        path.write_bytes(page.get(found[which]).content)
        with vidup.open(path) as video:
            assert (video.info.codec, video.info.width, video.info.height) == ("h264", 48, 64)
            times.append(video.info.pts)
    assert times[0] == times[1] and len(times[0]) == 20
    assert page.get(f"/api/preview/{found['id']}/..%2f..%2fx").status_code == 404


def test_a_preview_that_is_replaced_stops_and_the_model_stays(page: TestClient, tmp_path: Path, monkeypatch: Any):
    calls, going = [], threading.Event()
    upscale = vidup.Upscaler.upscale

    def slow(self: vidup.Upscaler, *paths: Any, **more: Any) -> Any:
        calls.append(self)
        if len(calls) == 1:
            going.set()
            while not self.stop():
                time.sleep(0.01)
        return upscale(self, *paths, **more)

    monkeypatch.setattr(vidup.Upscaler, "upscale", slow)
    body = {"input": str(tmp_path / "clip.mp4"), "at": 0, "settings": {"model": "nearest"}}
    first = page.post("/api/preview", json=body).json()["id"]
    assert going.wait(10)
    second = page.post("/api/preview", json={**body, "settings": {"model": "nearest", "seed": 2}, "replaces": [first]})
    assert page.get(f"/api/preview/{first}").json()["state"] == "stopped"
    found = ended(page, second.json()["id"])
    assert found["state"] == "done" and found["before"] and len(calls) == 2
    assert calls[0].engine.device == calls[1].engine.device and calls[1].settings.seed == 2
    waiting = [page.post("/api/preview", json={**body, "at": 0.1}).json()["id"] for _ in range(2)]
    for one in waiting:
        assert page.delete(f"/api/preview/{one}", headers=JSON).status_code == 200
    assert {ended(page, one)["state"] for one in waiting} <= {"stopped", "done"}


def test_a_preview_that_fails_says_why_in_a_line(page: TestClient, tmp_path: Path):
    (tmp_path / "broken.mp4").write_bytes(b"no film")
    Image.new("RGB", (16, 12)).save(tmp_path / "still.png")
    for name, kind in (("broken.mp4", "frame"), ("broken.mp4", "moving"), ("still.png", "moving")):
        body = {"input": name, "at": 0, "kind": kind, "settings": {"model": "nearest"}}
        found = ended(page, page.post("/api/preview", json=body).json()["id"])
        assert found["state"] == "failed" and found["error"] and "\n" not in found["error"]
    assert page.get("/api/preview/nobody").status_code == 404


def test_settings_are_saved_as_a_preset_that_reads_as_they_were(page: TestClient, tmp_path: Path):
    settings = {
        "preset": "fast",
        "prompt": 'a "b" \\ \x7f \U0001f600\nc',
        "crf": "18",
        "encoder_options": "preset=slow tune=grain",
    }
    settings |= {"start": "1:05", "no_audio": True, "noise_level": "auto", "scale": 2, "device": "cpu"}
    saved = page.post("/api/preset", json={"name": "my own", "settings": settings}).json()
    found = vidup.Settings.preset(saved["path"])
    assert (found.steps, found.start, found.crf, found.prompt) == (
        vidup.Settings.preset("fast").steps, 65.0, 18, settings["prompt"],
    )  # fmt: skip
    assert found.encoder_options == {"preset": "slow", "tune": "grain"} and found.no_audio
    assert page.post("/api/preset", json={"name": "my own", "settings": {}}).status_code == 400
    assert page.post("/api/preset", json={"name": "my own", "settings": {}, "replace": True}).status_code == 200
    assert str(tmp_path / "my own.toml") in [preset["name"] for preset in page.get("/api/start").json()["presets"]]
    for name in ("", "../x", "a/b", ".x", "mini", "x" * 99, "a\0"):
        assert page.post("/api/preset", json={"name": name, "settings": {}}).status_code == 400, name
    assert [path.name for path in tmp_path.glob("*.toml")] == ["my own.toml"]
    assert not list(tmp_path.glob(".*"))


def test_the_command_line_that_is_shown_means_what_was_filled_in():
    from vidup.arguments import parser
    from vidup.cli import _COMMANDS
    from vidup.options import from_options

    given = {
        **{"preset": "mini", "model": "mini", "prompt": "-a b", "crf": 17.5, "no_audio": True, "noise_level": 40},
        **{"encoder_options": {"preset": "slow", "tune": "grain"}, "start": 1.25, "batch": 2, "offload": False},
    }
    form = forms.read(given, Folders(["."]))
    typed = parser(_COMMANDS).parse_args(form.arguments(Path("/a b.mp4"), Path("/c.mp4"), overwrite=True))
    assert from_options(vidup.Settings, vars(typed), typed.preset) == form.settings
    assert from_options(vidup.Runtime, vars(typed)) == replace(form.runtime, overwrite=True)
    assert (typed.inputs, typed.output) == (["/a b.mp4"], "/c.mp4")

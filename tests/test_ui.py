"""The page's server: who may ask it, for what, and what it answers."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import BrokenExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="the extra vidup[ui] is not installed")

from starlette.testclient import TestClient

import vidup
from vidup import ui
from vidup.engines.interpolate import Interpolation
from vidup.job.outlook import Plan
from vidup.ui import forms, looks, places, previews, requests, runner, runs
from vidup.ui.safety import Folders
from vidup.ui.server import application

TOKEN = "a-token-of-this-test"
JSON = {"content-type": "application/json"}


def client_of(folder: Path) -> TestClient:
    app = application(Folders([folder]), TOKEN, "127.0.0.1", 7860)
    return TestClient(app, base_url="http://127.0.0.1:7860", cookies={"vidup_7860": TOKEN})


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
    assert names == [name for name in wanted if name not in ("overwrite", "watch")]
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
    assert picture.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(picture.content)).size == (32, 24)
    whole = page.get("/api/frame", params={"input": body["input"], "at": 99})  # the last one
    with vidup.open(tmp_path / "clip.mp4") as video:
        assert abs(np.asarray(Image.open(io.BytesIO(whole.content)), float) - video[11].rgb()).mean() < 4


def test_what_takes_long_to_find_out_is_told_once_it_is_known(page: TestClient, tmp_path: Path, monkeypatch: Any):
    asked, known, source = [], threading.Event(), tmp_path / "clip.mp4"
    plan = vidup.plan

    def slow(film: vidup.Video, *rest: Any, pictures: bool = True) -> Plan:
        asked.append((rest[1].seed, pictures))
        assert film.info.frames == 12 and (not pictures or known.wait(10))
        return plan(film, *rest, pictures=pictures)

    monkeypatch.setattr(vidup, "plan", slow)
    looks_of = looks.Looks(apart=False)
    first, second = (forms.read({"model": "nearest", "seed": seed}, Folders([tmp_path])) for seed in (1, 2))
    found, more = looks_of.plan(source, first, None)
    assert more and "footage" not in dict(found.facts)
    known.set()
    for form in (first, second, first):
        for _ in range(100):
            found, more = looks_of.plan(source, form, tmp_path / "x.mkv")
            if not more:
                break
        assert dict(found.facts)["footage"] and f"{tmp_path}/x.mkv: " in dict(found.facts)["output"]
    assert sorted(asked) == [(1, False), (1, False), (1, True), (2, False)]  # once for each output, the slow part once
    looks_of.close()


def test_a_process_that_plans_and_is_ended_is_replaced(page: TestClient, tmp_path: Path, monkeypatch: Any):
    calls, plan = [], looks._plan

    def ended_once(*given: Any) -> Plan:
        calls.append(given)
        if len(calls) in (1, 3):
            raise BrokenExecutor
        return plan(*given)

    monkeypatch.setattr(looks, "_plan", ended_once)
    looks_of = looks.Looks(apart=False)
    form = forms.read({"model": "nearest"}, Folders([tmp_path]))
    while looks_of.plan(tmp_path / "clip.mp4", form, None)[1]:
        pass
    assert [given[-1] for given in calls] == [False, False, True, True]
    looks_of.close()


def test_who_has_no_token_gets_nothing(page: TestClient, tmp_path: Path):
    page.cookies.clear()
    for path in ("/", "/api/start", "/api/folder", f"/api/frame?input={tmp_path}/clip.mp4"):
        assert page.get(path).status_code == 403
    assert page.get("/?token=another").status_code == 403
    first = page.get(f"/?token={TOKEN}", follow_redirects=False)
    assert first.status_code == 303 and first.headers["location"] == "/"
    assert (
        "httponly" in first.headers["set-cookie"].lower() and "samesite=strict" in first.headers["set-cookie"].lower()
    )
    assert page.get("/").status_code == 200  # by the cookie
    linked = page.get(f"/?token={TOKEN}", headers={"sec-fetch-site": "cross-site"})  # a redirect would bear no cookie
    assert linked.status_code == 200 and "set-cookie" in linked.headers and 'content="0; url=/"' in linked.text


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
        (tmp_path / "x.toml").write_text("")
        (inside / "y.toml").write_text(f"vae = '{tmp_path}'")
        files = (
            {"model": "../a.pth"},
            {"model": str(tmp_path / "a.pth")},
            {"vae": "/etc"},
            {"vae": "a\0"},
            {"vae": ".."},
        )
        for settings in (
            *({"preset": path} for path in (str(tmp_path / "x.toml"), "../x.toml", "y.toml", 3)),
            *files,
            *({"encoder_options": "stats=/tmp/x"}, {"encoder_options": {"x264-params": "stats=C:\\x"}}),
            *({"watch": str(tmp_path)}, {"overwrite": True}, {"nobody": 1}, {"steps": "x"}, []),
        ):
            answer = client.post("/api/preset", json={"name": "z", "settings": settings})
            assert answer.status_code in (400, 403), settings
            assert answer.json()["error"] and "\n" not in answer.json()["error"]
        assert sorted(path.name for path in inside.glob("*.toml")) == ["y.toml"]


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


def test_what_the_first_picture_alone_takes_is_in_no_estimate(page: TestClient, monkeypatch: Any):
    enlarge, calls = Interpolation.__call__, []

    def warming(self: Interpolation, *given: Any) -> Any:
        calls.append(self)
        time.sleep(1 if len(calls) == 1 else 0)
        return enlarge(self, *given)

    monkeypatch.setattr(Interpolation, "__call__", warming)
    body = {"input": "clip.mp4", "at": 0, "settings": {"model": "bilinear"}, "kind": "frame"}
    found = ended(page, page.post("/api/preview", json=body).json()["id"])
    assert len(calls) == 2 and found["seconds_a_frame"] < 1


def test_a_preview_of_a_frame_knows_how_the_film_was_encoded(page: TestClient, tmp_path: Path, monkeypatch: Any):
    given: list[vidup.Settings] = []

    def upscale(self: vidup.Upscaler, *paths: Any, **more: Any) -> None:
        given.append(self.settings)
        raise vidup.Stopped

    monkeypatch.setattr(vidup.Upscaler, "upscale", upscale)
    body = {"input": "clip.mp4", "at": 0, "settings": {"model": "mini", "codec": "libx265", "start": 1, "seed": 5}}
    assert ended(page, page.post("/api/preview", json=body).json()["id"])["state"] == "stopped"
    with vidup.open(tmp_path / "clip.mp4") as video:
        assert given[0].quantiser == video[0].quantiser > 0
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


def test_a_preview_that_is_cancelled_stops_and_the_model_stays(page: TestClient, tmp_path: Path, monkeypatch: Any):
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
    second = page.post("/api/preview", json={**body, "settings": {"model": "nearest", "seed": 2}})
    assert page.delete(f"/api/preview/{first}", headers=JSON).status_code == 200
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


def test_a_picture_that_is_none_starts_no_program(page: TestClient, tmp_path: Path):
    head = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"  # Pillow gives it to Ghostscript
    (tmp_path / "a.png").write_bytes(head + b"%%EOF")
    answer = page.get("/api/frame", params={"input": "a.png", "at": 0})
    assert answer.status_code == 400 and answer.json()["error"].startswith(
        f"{tmp_path}/a.png: cannot be read: cannot ide"
    )
    Image.new("RGB", (8, 6)).save(tmp_path / "b.png")
    assert page.get("/api/frame", params={"input": "b.png", "at": 0}).status_code == 200
    assert {file["name"]: file["video"] for file in page.get("/api/folder").json()["files"]}["b.png"]


def test_an_upload_is_bounded_and_replaces_nothing(page: TestClient, tmp_path: Path, monkeypatch: Any):
    binary = {"content-type": "application/octet-stream"}
    found = page.post("/api/upload", params={"name": "new film.mp4"}, content=b"abc" * 999_999, headers=binary)
    assert found.json() == {"path": str(tmp_path / "new film.mp4")}
    assert (tmp_path / "new film.mp4").read_bytes() == b"abc" * 999_999
    (tmp_path / "link.mp4").symlink_to(tmp_path.parent / "nowhere")
    for name, status in (
        *[("clip.mp4", 409), ("new film.mp4", 409), ("link.mp4", 409), ("../x.mp4", 400), ("a/b", 400), ("", 400)],
        *[(".x", 400), ("a\0", 400), ("a\nb", 400), ("x" * 201, 400)],
    ):
        assert page.post("/api/upload", params={"name": name}, content=b"x", headers=binary).status_code == status, name
    assert page.post("/api/upload?name=a.mp4", content=b"x", headers=JSON).status_code == 415
    monkeypatch.setattr(requests, "_MOST_UPLOAD", 10)
    for content in (b"x" * 11, iter([b"x" * 11])):
        assert page.post("/api/upload?name=b.mp4", content=content, headers=binary).status_code == 413
    monkeypatch.setattr(requests, "_LEFT_FREE", 1 << 60)
    assert page.post("/api/upload?name=c.mp4", content=b"x", headers=binary).status_code == 507
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "link.mp4", "new film.mp4"]


def until(ask: Any, *states: Any) -> Any:
    """What is asked for, once it is in one of the states."""
    for _ in range(3000):
        found = ask()
        if found is not None and found["state"] in states:
            return found
        time.sleep(0.02)
    raise AssertionError(found)


def test_a_run_outlives_its_server_and_the_next_one_finds_it(make_clip: Any, tmp_path: Path):
    clip = make_clip()
    body = {"input": "clip.mp4", "settings": {"model": "nearest", "scale": 2, "encoder_options": "preset=ultrafast"}}
    with client_of(tmp_path) as client:
        name = client.post("/api/runs", json=body).json()["id"]
        assert client.post("/api/runs", json=body).status_code == 409  # its output is that of a run
        assert client.get(f"/api/runs/{name}/after.jpg").status_code in (200, 404)
    with client_of(tmp_path) as client:
        found = until(lambda: client.get("/api/runs").json()["runs"][0], "done", "failed")
        output = tmp_path / "clip_x2.mp4"
        assert (found["id"], found["state"], found["error"], found["output"]) == (name, "done", None, str(output))
        assert (found["share"], found["frames"], found["of"]) == (1.0, 12, 12)
        assert found["receipt"][0] == f"{output}: verified against {clip}" and output.is_file()
        sizes = [Image.open(io.BytesIO(client.get(found["newest"][one]).content)).size for one in ("before", "after")]
        assert sizes == [(128, 96), (128, 96)]
        assert found["command"].startswith(f"vidup upscale {clip} -o {output} --model nearest --scale 2")
        assert client.post("/api/runs", json=body).status_code == 409  # the output exists
        assert client.post("/api/runs", json={**body, "output": "clip.mp4"}).status_code == 400
        assert client.post("/api/runs", json={**body, "output": "../x.mp4"}).status_code == 403
        other = tmp_path / "other"
        other.mkdir()
        with client_of(other) as elsewhere:  # sees it, but none of its pictures
            (run,) = elsewhere.get("/api/runs").json()["runs"]
            assert (run["id"], run["newest"]) == (name, None)
            assert elsewhere.get(f"/api/runs/{name}/after.jpg").status_code == 403
            (other / "clip_x2.mp4").symlink_to(output)  # a default name that leads out
            shutil.copy(clip, other / "clip.mp4")
            assert elsewhere.post("/api/runs", json={**body, "replace": True}).status_code == 403
        assert client.delete(f"/api/runs/{name}", headers=JSON).status_code == 200
        assert client.get("/api/runs").json() == {"runs": []} and output.is_file()
        for way in ("pause", "resume", "x"):
            assert client.post(f"/api/runs/{name}/{way}", json={}).status_code == 404
            assert client.post(f"/api/runs/..%2f..%2fx/{way}", json={}).status_code in (404, 405)


ACTS = """
import json, os, signal, sys, time
source = sys.argv[2]
def say(**more): print(json.dumps({"file_frames": 4, **more}), flush=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
say(state="upscaling", file_frame=1)
if "slow" in source:
    while not os.path.exists(source + ".go"): time.sleep(0.01)
if "fails" in source: say(state="failed", error="it failed"); sys.exit(1)
if "crashes" in source: print("vidup: a last word", file=sys.stderr); sys.exit(1)
if "killed" in source: os.kill(os.getpid(), signal.SIGKILL)
say(state="done", file_frame=4)
"""


@pytest.fixture
def acted(tmp_path: Path, monkeypatch: Any) -> Any:
    """Runs whose processes are small scripts; a function that starts a runner in a thread."""

    def start(command: list[str], *files: Any) -> Any:
        return runs.start([sys.executable, "-S", "-c", ACTS, *command[4:]], *files)

    monkeypatch.setattr(runner, "_LOOK", 0.01)
    monkeypatch.setattr(runner, "start", start)
    known, threads = runs.Runs(tmp_path), list[threading.Thread]()

    def begin() -> threading.Thread:
        threads.append(threading.Thread(target=runner.main, args=(tmp_path,)))
        threads[-1].start()
        return threads[-1]

    yield known, begin, lambda name: lambda: runs.as_json(known.find(name))
    for run in known.all():
        known.forget(run.id)
    begin().join(10)
    for thread in threads:
        thread.join(10)


def test_runs_go_one_after_another_and_each_end_is_told(acted: Any, tmp_path: Path):
    known, begin, at = acted
    names = {
        act: known.add(["upscale", act], Path(act), tmp_path / act) for act in ("fails", "crashes", "killed", "ok")
    }
    begin().join(20)
    found = {act: (at(name)()["state"], at(name)()["error"]) for act, name in names.items()}
    assert found["fails"] == ("failed", "it failed") and found["crashes"] == ("failed", "a last word")
    assert found["killed"][0] == "failed" and "SIGKILL" in found["killed"][1]
    assert found["ok"] == ("done", None)
    assert at(names["ok"])()["share"] == 1 and at(names["fails"])()["frames"] == 0


def test_a_run_is_paused_resumed_and_forgotten(acted: Any, tmp_path: Path):
    known, begin, at = acted
    first, second = (known.add(["upscale", f"slow{n}"], Path("x"), tmp_path / f"slow{n}") for n in range(2))
    begin()
    until(lambda: {"state": at(first)()["frames"]}, 1)
    assert at(second)()["state"] == "waiting"
    known.pause(second)
    assert at(second)()["state"] == "paused"
    known.pause(first)
    assert at(first)()["line"] in ("stopping", "paused; finished frames are kept")
    until(at(first), "paused")
    known.resume(second)
    known.resume(first)
    begin()
    until(at(second), "running")  # it was resumed first
    known.forget(second)
    until(at(first), "running")
    with pytest.raises(vidup.VidupError, match="no such run"):
        known.find(second)
    assert (at(first)()["frames"], at(first)()["of"]) == (1, 4)  # of its process before, until this one says more
    os.kill(known.find(first).process[0], signal.SIGTERM)  # somebody else stops it
    until(at(first), "paused")
    third = known.add(["upscale", "slow3"], Path("x"), tmp_path / "slow3")
    begin()
    until(at(third), "running")
    shutil.rmtree(known.folder / third)  # by hand: its process ends, and nobody waits for it
    known.resume(first)
    begin()
    until(at(first), "running")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [first]


def test_the_next_runner_finds_what_a_killed_one_left(acted: Any, tmp_path: Path):
    known, begin, at = acted
    name = known.add(["upscale", str(tmp_path / "slow")], Path("x"), tmp_path / "slow")
    code = (
        f"from vidup.ui import runner, runs\nACTS = {ACTS!r}\n"
        "runner.start = lambda c, *f: runs.start([runner.sys.executable, '-S', '-c', ACTS, *c[4:]], *f)\n"
        f"runner.main(runs.Path({str(tmp_path)!r}))"
    )
    first = subprocess.Popen([sys.executable, "-c", code])
    until(at(name), "running")
    first.kill()
    first.wait()
    process = known.find(name).process
    begin()
    time.sleep(0.1)
    assert at(name)()["state"] == "running" and known.find(name).process == process  # no second one beside it
    os.kill(process[0], signal.SIGKILL)  # as the end of the machine would
    for _ in range(1000):
        if known.find(name).process not in (None, process):  # begun again by itself
            break
        time.sleep(0.01)
    (tmp_path / "slow.go").touch()
    until(at(name), "done")


def test_two_runners_do_each_run_once(acted: Any, tmp_path: Path):
    known, begin, at = acted
    names = [known.add(["upscale", f"ok{n}"], Path("x"), tmp_path / f"ok{n}") for n in range(4)]
    for _ in range(3):
        begin()
    for name in names:
        until(at(name), "done")
        assert len((known.folder / name / "events").read_text().splitlines()) == 2
    known.add(["upscale", "slow"], Path("x"), tmp_path / "slow")
    with pytest.raises(vidup.VidupError, match="is the output of a run already"):
        known.add(["upscale"], Path("x"), tmp_path / "slow")


def test_a_full_disk_loses_no_run_and_starts_none(acted: Any, tmp_path: Path, monkeypatch: Any):
    known, begin, at = acted
    name = known.add(["upscale", "ok"], Path("x"), tmp_path / "ok")

    def full(*_: Any) -> None:
        raise vidup.MediaError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(runs, "write", full)
        with pytest.raises(vidup.MediaError):
            runner.main(tmp_path)
    assert at(name)()["state"] == "waiting" and not (known.folder / name / "events").exists()
    begin()
    until(at(name), "done")


def test_a_model_that_nobody_uses_is_let_go(page: TestClient, tmp_path: Path, monkeypatch: Any):
    gone = threading.Event()
    monkeypatch.setattr(previews, "_IDLE", 0.05)
    monkeypatch.setattr(vidup.Upscaler, "close", lambda self: gone.set())
    body = {"input": "clip.mp4", "at": 0, "settings": {"model": "nearest"}}
    assert ended(page, page.post("/api/preview", json=body).json()["id"])["state"] == "done"
    assert gone.wait(10)
    assert ended(page, page.post("/api/preview", json=body).json()["id"])["state"] == "done"  # and comes again


def test_finished_previews_are_bounded(page: TestClient, tmp_path: Path, monkeypatch: Any):
    monkeypatch.setattr(previews, "_MOST_KEPT", 2)
    body = {"input": "clip.mp4", "at": 0, "settings": {"model": "nearest", "scale": 1}}
    made = [ended(page, page.post("/api/preview", json=body).json()["id"])["id"] for _ in range(4)]
    assert [page.get(f"/api/preview/{one}").status_code for one in made] == [404, 404, 200, 200]
    assert len(list(places.state().glob("previews/*/*"))) == 2
    (places.state() / "previews" / "1-1-aa").mkdir()  # of a server that was killed
    with client_of(tmp_path):
        assert len(list(places.state().glob("previews/*"))) == 2
    assert len(list(places.state().glob("previews/*"))) == 1


def test_the_next_free_port_is_taken():
    with contextlib.closing(ui._listen("127.0.0.1", 0)) as first:
        port = first.getsockname()[1]
        with contextlib.closing(ui._listen("127.0.0.1", port)) as second:
            assert port < second.getsockname()[1] <= port + 20
    with pytest.raises(vidup.ConfigError, match=r"host = 203.0.113.1, port = 7860: cannot be listened at"):
        ui._listen("203.0.113.1", 7860)


def test_without_the_extra_a_line_says_what_to_install(monkeypatch: Any, capsys: pytest.CaptureFixture[str]):
    from vidup.cli import main

    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["ui", "--no-browser"]) == 2
    assert capsys.readouterr().err == 'vidup: ui: needs uvicorn; pip install "vidup[ui]" brings it\n'
    monkeypatch.undo()
    assert main(["ui", "--no-browser", "/nowhere"]) == 2
    assert capsys.readouterr().err == "vidup: /nowhere: is no folder; give one that is there\n"
    with pytest.raises(SystemExit):
        main(["ui", "--port", "65536"])

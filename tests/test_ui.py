"""The page's server: who may ask it, for what, and what it answers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra vidup[ui] is not installed")

from starlette.testclient import TestClient

from vidup.ui.safety import Folders
from vidup.ui.server import application

TOKEN = "a-token-of-this-test"
JSON = {"content-type": "application/json"}


def client_of(folder: Path, **headers: str) -> TestClient:
    app = application(Folders([folder]), TOKEN, "127.0.0.1", 7860)
    return TestClient(app, base_url="http://127.0.0.1:7860", headers={"x-vidup-token": TOKEN, **headers})


@pytest.fixture
def page(make_clip: Any, tmp_path: Path) -> Any:
    make_clip()
    with client_of(tmp_path) as client:
        yield client


def test_the_start_has_every_setting_once_with_its_help(page: TestClient):
    from dataclasses import fields

    import vidup

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

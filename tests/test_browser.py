"""The page in a real browser: chosen, looked at, changed, run, closed, found again."""

from __future__ import annotations

import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra vidup[ui] is not installed")
pytest.importorskip("uvicorn", reason="the extra vidup[ui] is not installed")
pytest.importorskip("playwright", reason="needs playwright, which the extra vidup[dev] brings")

import uvicorn
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.material import Material, Sound
from vidup.ui.safety import Folders
from vidup.ui.server import application

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium to drive: apt-get install chromium")

TOKEN = "a-token-of-this-test"
expect.set_options(timeout=60_000)  # it is no wait that is tested, and others may work on this machine
Opened = Callable[..., Page]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page may see: two films, a folder, something else."""
    folder = tmp_path_factory.mktemp("films")
    Material(frames=38, size=(64, 48), sounds=[Sound("aac")]).write(folder / "harbour.mp4")
    Material(frames=6, size=(32, 24)).write(folder / "archive.mkv")
    (folder / "notes.txt").write_text("no film")
    (folder / "reels").mkdir()
    return folder


@pytest.fixture(scope="module")
def address(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page's server, in a thread of its own; its address."""
    with (
        pytest.MonkeyPatch.context() as patch,
        closing(socket.create_server(("127.0.0.1", 0))) as listener,
    ):
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        port = listener.getsockname()[1]
        app = application(Folders([folder]), TOKEN, "127.0.0.1", port)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{port}"
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture
def opened(browser: Browser, address: str) -> Iterator[Opened]:
    """Opens the page as a browser without a past does; a fault of its scripts fails the test."""
    contexts, faults = [], []

    def open_page(model: str = "", **how: Any) -> Page:
        contexts.append(browser.new_context(viewport={"width": 1280, "height": 800}, reduced_motion="reduce", **how))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda fault: faults.append(str(fault)))
        page.on("console", lambda line: faults.append(line.text) if "Security Policy" in line.text else None)
        if model:  # as an earlier visit has left it
            page.add_init_script(f"sessionStorage.vidup ??= JSON.stringify({{ settings: {{ model: '{model}' }} }})")
        page.goto(f"{address}/?token={TOKEN}")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults


def choose(page: Page, name: str = "harbour.mp4", **settings: str) -> None:
    """Choose a film, with settings typed into the form."""
    page.get_by_role("button", name=name).first.click()
    expect(page.get_by_role("heading", name=name)).to_be_visible()
    for field, text in settings.items():
        control = page.locator(f"[name={field}]")
        if not control.is_visible():
            finder = page.get_by_label("Find a setting")
            if not finder.is_visible():
                page.get_by_text("More settings").click()
            finder.fill(field)
        control.fill(text)
        control.press("Tab")


def done(page: Page) -> Any:
    """What a finished preview says of its cost."""
    line = page.locator('.looks .under .status[data-state="done"]:visible .text')
    expect(line).to_contain_text("a frame")
    return line


def pixels(page: Page, layer: str) -> tuple[int, int]:
    image = page.locator(f".looks > .stage .{layer} > *")
    return tuple(image.evaluate("(at) => [at.naturalWidth ?? at.videoWidth, at.naturalHeight ?? at.videoHeight]"))


def answer(page: Page, path: str) -> Any:
    return page.request.get(path).json()  # with the page's cookie


def becomes(page: Page, preview: str, state: str) -> None:
    deadline = time.monotonic() + 60
    while answer(page, preview)["state"] != state:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_film_is_chosen_and_seen_before_and_after(opened: Opened, folder: Path, address: str):
    page = opened()
    expect(page.get_by_role("button", name="archive.mkv")).to_be_visible()
    expect(page.get_by_role("button", name="notes.txt")).to_have_count(0)
    choose(page, model="nearest")
    expect(page.locator(".facts").first).to_contain_text("64 × 48")
    done(page)
    assert pixels(page, "before") == pixels(page, "after") == (256, 192)
    expect(page.locator(".runbar")).to_contain_text("256 × 192")
    expect(page.locator(".runbar")).to_contain_text("harbour_x4.mp4")
    page.get_by_text("The same on the command line").locator("visible=true").click()
    expect(page.locator(".delivery code")).to_have_text(re.compile(r"^vidup upscale .*harbour\.mp4 .*--model nearest$"))

    # The divider follows the keys and the pointer; zoomed, the pointer moves the picture.
    stage = page.locator(".looks > .stage")
    divider = page.get_by_role("slider", name=re.compile("Before and after"))
    divider.press("Home")
    assert stage.evaluate("(at) => at.style.getPropertyValue('--at')") == "0%"
    box = stage.bounding_box()
    page.mouse.click(box["x"] + 0.75 * box["width"], box["y"] + 20)
    assert divider.input_value() == "75"
    before = page.locator(".looks > .stage .before > *")
    fitted = before.bounding_box()["width"]
    page.get_by_role("button", name="8:1").click()
    assert before.bounding_box()["width"] == pytest.approx(8 * 256, abs=1) and fitted <= box["width"] + 1
    left = before.bounding_box()["x"]
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 160, box["y"] + 100)
    page.mouse.up()
    assert before.bounding_box()["x"] == pytest.approx(left + 60, abs=1.5) and divider.input_value() == "75"

    # Another frame is another preview; what was chosen survives a reload.
    page.locator(".frames .frame").last.click()
    done(page)
    at = page.get_by_role("textbox", name=re.compile("Time of the frame")).input_value()
    page.reload()
    done(page)
    assert page.get_by_role("textbox", name=re.compile("Time of the frame")).input_value() == at
    expect(page.locator("[name=model]")).to_have_value("nearest")


def test_a_preview_is_cancelled_when_a_setting_changes_and_when_the_page_is_left(opened: Opened, address: str):
    page = opened()
    with page.expect_response(
        lambda got: '"steps":1000' in (got.request.post_data or "") and "preview" in got.url
    ) as asked:
        choose(page, steps="1000")
    first = f"{address}/api/preview/{asked.value.json()['id']}"
    assert answer(page, first)["state"] in ("waiting", "running")
    with page.expect_response(
        lambda got: '"steps":999' in (got.request.post_data or "") and "preview" in got.url
    ) as asked:
        page.locator("[name=steps]").fill("999")
        page.locator("[name=steps]").press("Tab")
    second = f"{address}/api/preview/{asked.value.json()['id']}"
    becomes(page, first, "stopped")
    becomes(page, second, "running")
    page.goto("about:blank")
    becomes(page, second, "stopped")


def test_a_setting_that_cannot_be_is_told_at_its_field(opened: Opened):
    page = opened(model="nearest")
    choose(page, "archive.mkv", crf="99")
    field = page.locator('.field[data-name="crf"]')
    expect(field.locator(".fault")).to_contain_text("crf = 99")
    expect(field.locator("input")).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_role("button", name="Run", exact=True)).to_be_disabled()
    field.get_by_role("button", name="Reset crf").click()
    expect(page.get_by_role("button", name="Run", exact=True)).to_be_enabled()
    expect(field.locator(".fault")).to_be_hidden()


def test_presets_stand_side_by_side_and_two_seconds_move_in_step(opened: Opened):
    page = opened(model="nearest")
    choose(page)
    page.get_by_role("button", name="Side by side").click()
    for name in ("bicubic", "mini"):
        tile = page.locator(f'.tile[data-name="{name}"]')
        expect(tile.locator(".status")).to_contain_text("a frame, the whole film")
        assert tile.locator("img").evaluate("(at) => at.naturalWidth") == 256
    expect(page.locator(".tile")).to_have_count(2)

    page.get_by_role("button", name="Two seconds").click()
    done(page)
    expect(page.locator(".looks > .stage video")).to_have_count(2)
    assert pixels(page, "before") == pixels(page, "after") == (256, 192)
    expect(page.locator(".player .time")).to_contain_text("1/38")
    page.get_by_role("button", name="One frame on").locator("visible=true").click()
    page.get_by_role("button", name="Play").click()
    page.locator('.player .time:text-matches("(1[0-9]|2[0-9])/38")').wait_for()
    page.get_by_role("button", name="Pause").click()
    times = [page.locator(f".stage .{layer} video").evaluate("(at) => at.currentTime") for layer in ("before", "after")]
    assert times[0] == pytest.approx(times[1], abs=0.01) and times[0] > 0


def test_a_run_is_paused_found_again_and_delivered(opened: Opened, folder: Path):
    page = opened(model="nearest")
    choose(page, "archive.mkv")
    page.get_by_role("button", name="Run", exact=True).click()
    run = page.get_by_role("article", name="archive.mkv")
    run.get_by_role("button", name="Pause").click()
    expect(run.locator(".state")).to_have_text("Paused")
    page.context.close()
    assert not (folder / "archive_x4.mkv").exists()

    page = opened()
    page.get_by_role("link", name="Runs").click()
    run = page.get_by_role("article", name="archive.mkv")
    run.get_by_role("button", name="Go on").click()
    expect(run.locator(".state")).to_have_text("Done")
    expect(run.locator(".receipt")).to_contain_text("6")
    expect(run.locator(".line")).to_contain_text("6 of 6 frames")
    assert (folder / "archive_x4.mkv").exists()
    run.get_by_role("button", name="Take off the list").click()
    expect(run).to_have_count(0)
    assert (folder / "archive_x4.mkv").exists()


def test_settings_are_saved_as_a_preset(opened: Opened, folder: Path):
    page = opened(model="nearest")
    choose(page, "archive.mkv", crf="12")
    page.get_by_text("Save these settings as a preset").click()
    page.get_by_label("Name of the preset").fill("news")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.locator(".saving .told")).to_contain_text("news.toml")
    assert "crf = 12" in (folder / "news.toml").read_text()
    expect(page.locator(".preset", has_text="news")).to_have_count(1)


def test_a_film_is_uploaded_into_the_first_folder(opened: Opened, folder: Path, tmp_path: Path):
    film = Material(frames=3, size=(32, 24)).write(tmp_path / "dropped.mp4")
    page = opened(model="nearest")
    page.locator("#file").set_input_files(film)
    expect(page.get_by_role("heading", name="dropped.mp4")).to_be_visible()
    assert (folder / "dropped.mp4").read_bytes() == film.read_bytes()


def test_another_site_cannot_use_the_page(opened: Opened, address: str, folder: Path):
    """One on this very machine: for the browser it is of the same site, so that the cookie goes with what it sends."""
    page = opened()
    host, _, port = address.rpartition(":")
    hostile = f"{host}:{int(port) ^ 1}"
    page.context.route(f"{hostile}/", lambda route: route.fulfill(content_type="text/html", body="<title>bait</title>"))
    page.goto(f"{hostile}/")
    tried = page.evaluate(
        """async ([address, body]) => {
            const how = { credentials: "include", method: "POST", body };
            const ways = [["/api/start", { credentials: "include" }],
                ["/api/runs", { ...how, mode: "no-cors", headers: { "Content-Type": "text/plain" } }],
                ["/api/preset", { ...how, headers: { "Content-Type": "application/json" } }]];
            const found = [];
            for (const [path, way] of ways) {
                try {
                    const got = await fetch(address + path, way);
                    found.push(got.type === "opaque" ? "" : await got.text());
                } catch { found.push(""); }
            }
            return found;
        }""",
        [address, f'{{"input": "{folder}/harbour.mp4", "name": "bait", "settings": {{"model": "nearest"}}}}'],
    )
    assert tried == ["", "", ""]
    assert not (folder / "bait.toml").exists()
    page.goto(address)
    assert answer(page, f"{address}/api/runs")["runs"] == []


def test_it_can_be_used_on_a_narrow_window(opened: Opened):
    page = opened(model="nearest", has_touch=True)
    page.set_viewport_size({"width": 390, "height": 844})
    wide = "document.documentElement.scrollWidth"
    assert page.evaluate(wide) <= 390
    choose(page, "archive.mkv")
    done(page)
    assert page.evaluate(wide) <= 390
    page.locator(".looks > .stage").scroll_into_view_if_needed()
    box = page.locator(".looks > .stage").bounding_box()
    page.touchscreen.tap(box["x"] + 0.25 * box["width"], box["y"] + 0.5 * box["height"])
    expect(page.get_by_role("slider", name=re.compile("Before and after"))).to_have_value("25")
    run = page.get_by_role("button", name="Run", exact=True).bounding_box()
    assert run["x"] >= 0 and run["x"] + run["width"] <= 390 and run["y"] + run["height"] <= 844
    for view in ("Side by side", "Two seconds"):
        page.get_by_role("button", name=view).click()
        assert page.evaluate(wide) <= 390
    page.get_by_role("link", name="Runs").click()
    expect(page.get_by_role("heading", name="Runs")).to_be_visible()
    assert page.evaluate(wide) <= 390

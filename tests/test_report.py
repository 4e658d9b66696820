"""The page to look at: one file, whole by itself, with every result, frames worth looking at, and compare's numbers."""

from __future__ import annotations

import base64
import io
import json
import re
import weakref
from collections.abc import Callable, Iterator
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import pictures
from PIL import Image
from test_compare import codes, smooth, write

from vidup import ConfigError, MediaError, Runtime, Settings, report
from vidup.cli import main
from vidup.comparison import compare
from vidup.job import review
from vidup.job.progress import Outcome
from vidup.report import choice, films, lines, plots
from vidup.report.faith import FaithFigures
from vidup.report.pictures import heat, views

STRANGE = '<img src=x onerror="alert(1)"> & $body \n.mkv'
Output = pytest.CaptureFixture[str]


class Page(HTMLParser):
    """What is in a page: its elements with their attributes, and the text of some of them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img", "input", "path"):
            self._open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        for tag in set(self._open):
            self.texts[tag][-1] += data

    def all(self, tag: str, kind: str = "") -> list[dict[str, str | None]]:
        return [given for name, given in self.elements if name == tag and kind in (given.get("class") or "").split(" ")]

    def images(self, alt: str) -> list[np.ndarray]:
        found = [given["src"] or "" for given in self.all_images() if given["alt"] == alt]
        return [np.array(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))) for uri in found]

    def all_images(self) -> list[dict[str, str | None]]:
        return [given for tag, given in self.elements if tag == "img"]


def is_whole(page: Page) -> None:
    """Nothing in it asks for anything that is not in it."""
    for tag, given in page.elements:
        assert not [name for name in given if name.startswith("on")], tag
        for name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
            assert name not in given or re.match(r"data:|#", given[name] or ""), (tag, given)
        assert tag not in ("iframe", "object", "embed", "base", "form")
    assert "url(" not in page.texts["style"][0] and "@import" not in page.texts["style"][0]
    for script in page.texts["script"]:
        assert not re.search(r"fetch\(|import[ (]|XMLHttpRequest|WebSocket|https?:", script)
    (policy,) = (given for tag, given in page.elements if given.get("http-equiv") == "Content-Security-Policy")
    assert (policy["content"] or "").startswith("default-src 'none'; img-src data:;")


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Path]]:
    """A page of two results of a panned texture, its truth, and the results."""
    folder = tmp_path_factory.mktemp("studied")
    wide, times = smooth(48, 96), [0, 40, 80, 120, 160]
    pan = [wide[:, 3 * index : 3 * index + 64] for index in range(5)]
    noise = np.random.default_rng(3).standard_normal((5, 48, 64))
    noisy = [picture + (9 if index == 2 else 2) * noise[index] for index, picture in enumerate(pan)]
    truth = write(folder / "truth.mkv", codes(pan), times)
    results = {
        "noisy": write(folder / STRANGE, codes(noisy), times),
        "lighter": write(folder / "lighter.mkv", codes([picture + 3 for picture in pan[:4]]), times[:4]),
    }
    page = folder / "page.html"
    report.write(page, truth, list(results.values()))
    return page, truth, results


def test_a_page_is_whole_and_names_are_text(studied):
    page = Page(studied[0])
    is_whole(page)
    shown = STRANGE.replace("\n", "\N{REPLACEMENT CHARACTER}")
    assert len(page.all("tbody")) == 1
    rows = [text for text in page.texts["tr"] if shown in text or "lighter.mkv" in text]
    assert len(rows) == 2 and shown in page.texts["h1"][0] and shown in page.texts["title"][0]
    assert all(given["src"] and given["src"].startswith("data:image/webp;base64,") for given in page.all_images())
    assert {"color-scheme", "viewport"} <= {given.get("name") for tag, given in page.elements if tag == "meta"}


def test_its_numbers_are_those_of_compare(studied, capsys: Output):
    path, truth, results = studied
    assert main(["compare", str(truth), *map(str, results.values()), "--json"]) == 0
    tables = json.loads(capsys.readouterr().out)["results"]
    assert [Path(table["path"]).name for table in tables] == [STRANGE, "lighter.mkv"]
    page = Page(path)
    cells = page.texts["td"]
    for row, table in enumerate(tables):
        mean = table["mean"]
        expected = [f"{mean['psnr']:.3f}", f"{mean['ssim']:.4f}", f"{mean['gmsd']:.4f}"]
        expected += [f"{mean[name]:.3f}" for name in ("gradient_energy", "warp_error", "flow_distance")]
        assert cells[7 * row : 7 * row + 6] == expected
    assert cells[18] == f"{tables[0]['mean']['warp_error_bicubic']:.3f}"
    assert "1 without a counterpart" in page.source
    psnr, _, _, flicker = json.loads(page.texts["script"][0])
    assert psnr[0]["value"] == [f"{frame['psnr']:.3f}" for frame in tables[0]["frames"]]
    assert psnr[1]["time"] == ["0.000 s", "0.040 s", "0.080 s", "0.120 s"]
    assert len(flicker) == 4 and flicker[0]["value"][0] == "–"
    assert len(page.all("figure", "plot")) == 4 and len(page.all("svg")) == 4


def test_its_frames_are_the_worst_the_median_and_the_most_flickering(studied):
    path, truth, results = studied
    page, found = Page(path), compare(truth, results["noisy"]).frames
    steadiest = max(found[1:], key=lambda frame: frame.warp_error or 0)
    assert page.texts["h3"][0].startswith("The worst") and page.texts["h3"][0].endswith("at 0.080 s")
    assert f"most flickering, at {steadiest.time:.3f} s" in " ".join(page.texts["h3"])
    views_ = page.all("figure", "view")
    assert len(views_) == len(page.texts["h3"]) == len(page.all("input")) in (2, 3)
    assert len(page.all("select")) == 3 * len(views_)
    stored = pictures(truth)
    for title, shown in zip(page.texts["h3"], page.images("the truth"), strict=True):
        index = round(float(re.search(r"at (\d\.\d+) s", title)[1]) * 25)  # type: ignore[index]
        assert np.abs(shown.astype(float) - stored[index]).max() <= 1
    assert len(page.images("distance from the truth: lighter.mkv")) == len(views_)


def test_a_line_over_time_is_where_it_flickers(tmp_path: Path):
    still = smooth(40, 56)
    flickering = [still.copy() for _ in range(6)]
    for index, picture in enumerate(flickering):
        picture[28:33] += 20 * (index % 2)
    truth = write(tmp_path / "a.mkv", codes([still] * 6), list(range(0, 240, 40)))
    other = write(tmp_path / "b.mkv", codes(flickering), list(range(0, 240, 40)))
    found = lines.lines(films.film(str(truth)), {"b": films.film(str(other))}, 0.12, "a")
    assert found is not None and 28 <= found.row < 33 and (found.frames, found.columns) == (6, 56)
    rows = [np.array(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))) for _, uri in found.pictures]
    assert [name for name, _ in found.pictures] == ["a", "b"] and rows[0].shape == (6, 56, 3)
    assert np.ptp(rows[0], axis=0).max() == 0 and np.ptp(rows[1], axis=0).mean() > 15


def test_a_delivery_brings_its_report(make_clip: Callable[..., Path], capsys: Output):
    """Of the part that was upscaled; both as players show them, turned and stretched."""
    times = tuple(range(0, 4 * 512, 512))
    source = make_clip("a & b.mp4", times=times, size=(32, 24), sound=False, rotate=90, aspect=Fraction(4, 3))
    output = source.with_name("big.mkv")
    command = ["upscale", str(source), "-o", str(output), "--model", "bilinear", "--report"]
    assert main([*command, "--start", "0.04", "-e", "preset=ultrafast"]) == 0
    path = source.with_name("big.mkv.html")
    page = Page(path)
    is_whole(page)
    assert page.texts["h1"] == ["big.mkv beside the input"] and "a & b.mp4" in page.texts["p"][0]
    assert "<small>96x128, 3 frames</small>" in page.source
    (left, *_), (invented, *_) = (
        page.images(f"{what}: big.mkv") for what in ("where it leaves the input", "where most was invented")
    )
    assert left.shape == invented.shape == (128, 96, 3)
    assert "--aspect:0.5625" in page.source  # 96 columns, each 3/4 as wide as high, by 128
    assert page.images("input, bicubic")[0].shape == left.shape
    faithful = float(page.texts["td"][0])
    assert faithful > 25  # of another frame, or turned the wrong way, it would be 10
    capsys.readouterr()
    output.unlink()
    assert main(command) == 2 and f"{path}: exists; add -y" in capsys.readouterr().err
    assert not output.exists()
    assert main(["upscale", str(source), "-o", "-", "--model", "bilinear", "--report"]) == 2
    assert "report: is of a file, and standard output is none" in capsys.readouterr().err


def test_beside_an_input_nothing_of_an_enlarged_picture_is_invented(tmp_path: Path, capsys: Output):
    """By compare: the first is smaller, and so the input. A result with detail of its own leaves it no further."""
    small = write(tmp_path / "in.mkv", codes([smooth(24, 32)] * 3), [0, 40, 80])
    rows, columns = np.indices((96, 128))
    plain = np.kron(smooth(24, 32), np.ones((4, 4)))
    detail = plain + 20 * ((rows + columns) % 2 * 2 - 1)
    results = [
        write(tmp_path / f"{name}.mkv", codes([p] * 3), [0, 40, 80]) for name, p in (("a", plain), ("b", detail))
    ]
    page = tmp_path / "page.html"
    assert main(["compare", str(small), *map(str, results), "-o", str(page), "--json"]) == 0
    one, two = (table["mean"] for table in json.loads(capsys.readouterr().out)["results"])
    assert two["faithfulness"] == pytest.approx(one["faithfulness"], abs=1)
    assert two["invented"] > one["invented"] + 10 and two["gradient_energy"] > 3
    assert one["warp_error_bicubic"] == pytest.approx(0, abs=1e-6) == two["warp_error"]
    assert f"{two['invented']:.3f}" in Page(page).texts["td"]
    assert main(["compare", str(small), str(results[0]), "-o", str(page), "-y"]) == 0
    assert "3 frames beside the input's, 0 without a counterpart" in capsys.readouterr().out
    with pytest.raises(MediaError, match=r"with -o report\.html the smaller is taken as its input"):
        compare(small, results[0])
    with pytest.raises(MediaError, match="results to show beside each other have one size"):
        report.write(page, small, [results[0], small], overwrite=True)


def test_a_report_that_is_not_to_be_had_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The result is delivered all the same."""
    small = write(tmp_path / "in.mkv", codes([smooth(24, 32)] * 2), [0, 40])
    large = write(tmp_path / "out.mkv", codes([smooth(96, 128)] * 2), [0, 40])
    receipt: Any = object()
    told: list[str] = []
    monkeypatch.setattr(review.log, "warning", lambda line, *values: told.append(line % values))
    outcome, settings, runtime = Outcome(small, large, receipt=receipt), Settings(model="mini"), Runtime(report=True)
    review.write(outcome, settings, runtime, lambda: True)
    large.write_bytes(b"no video")
    review.write(outcome, settings, runtime, lambda: False)
    assert "has no report: it was stopped; vidup compare INPUT OUTPUT -o" in told[0] and "out.mkv" in told[1]
    assert len(told) == 2 and not list(tmp_path.glob("*.html")) and not list(tmp_path.glob(".*"))
    review.write(outcome, settings, Runtime(), lambda: False)
    review.write(Outcome(small, large), settings, runtime, lambda: False)  # it failed: nothing is to be told of it
    assert len(told) == 2


def test_few_pictures_are_held_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """However long a film is: those of two frames of two films, and of the chosen."""
    read, held, most = films.Film.pictures, list[Any](), list[int]()

    def counted(self: films.Film, *places: int) -> Iterator[Any]:
        for time, picture in read(self, *places):
            held.append(weakref.ref(picture))
            most.append(sum(one() is not None for one in held))
            yield time, picture

    monkeypatch.setattr(films.Film, "pictures", counted)
    times = list(range(0, 800, 40))
    small = write(tmp_path / "in.mkv", codes([smooth(24, 32)] * 20), times)
    large = write(tmp_path / "out.mkv", codes([smooth(48, 64)] * 20), times)
    report.write(tmp_path / "a.html", small, [large])
    assert len(most) > 80 and max(most) <= 6


def test_a_page_is_not_written_over_what_is_there(tmp_path: Path, studied):
    page, truth, _ = studied
    before = page.read_bytes()
    with pytest.raises(ConfigError, match="exists; add -y"):
        report.write(page, truth, [truth])
    with pytest.raises(ConfigError, match=r"whose name ends in \.html"):
        report.write(tmp_path / "clip.mkv", truth, [truth])
    with pytest.raises(ConfigError, match="no such folder for the report"):
        report.write(tmp_path / "none" / "a.html", truth, [truth])
    assert page.read_bytes() == before and not list(tmp_path.iterdir())


def test_a_single_frame_has_a_page(tmp_path: Path):
    """No flicker is known of it, no line can be followed; equal pictures have no end of PSNR."""
    truth = write(tmp_path / "a.mkv", codes([smooth(40, 48)]), [0])
    report.write(tmp_path / "a.html", truth, [truth])
    page = Page(tmp_path / "a.html")
    is_whole(page)
    assert page.texts["td"][:2] == ["∞", "1.0000"] and page.texts["td"][4] == "–"
    assert page.texts["h3"] == ["The worst, the median, at 0.000 s"] and len(page.all("figure", "plot")) == 4


def test_frames_are_chosen_over_all_results():
    def frames(values: list[tuple[float, float | None]]) -> list[FaithFigures]:
        return [FaithFigures(float(t), likeness, 1.0 * t, 1, error) for t, (likeness, error) in enumerate(values)]

    one = frames([(30, None), (31, 1), (32, 9), (33, 1), (34, 1)])
    two = frames([(30, None), (31, 1), (32, 1), (20, 1), (34, 2)])
    found = choice.choose([one, two], "faithfulness", "invented")
    assert found == {3.0: "the worst", 1.0: "the median", 2.0: "the most flickering", 4.0: "the most invented"}


def test_a_plot_of_a_long_film_has_few_points():
    times = tuple(index / 24 for index in range(50_000))
    values = tuple(None if index == 70 else 30 + index % 7 for index in range(50_000))
    curve = plots.Curve("a", "r0", times, values)
    drawn = plots.plot(0, "PSNR", [curve], 3, [100.0])
    (line,) = re.findall(r'class="line r0" d="([^"]+)"', drawn)
    assert line.count("L") + line.count("M") <= plots.POINTS and 'class="band r0"' in drawn and len(drawn) < 50_000
    assert len(plots.readings([curve], 3)[0]["at"]) <= plots.POINTS
    gap = plots.plot(0, "", [plots.Curve("a", "r0", (0.0, 1.0, 2.0), (1.0, None, float("inf")))], 3, [])
    (line,) = re.findall(r'class="line r0" d="([^"]+)"', gap)
    assert re.fullmatch(r"M0\.0 [\d.]+h0M1000\.0 [\d.]+h0", line) and "nan" not in gap


@pytest.mark.parametrize(("low", "high"), [(0, 0), (31.2, 38.9), (0.97, 0.98), (-3, 1e6), (5, 5)])
def test_ticks_are_round_and_hold_the_values(low: float, high: float):
    found = plots.ticks(low, high)
    assert found[0] <= low and found[-1] >= high and 2 <= len(found) <= 8


def test_a_large_picture_is_shown_whole_and_a_part_of_it_as_it_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vidup.report.pictures.WHOLE", 128)
    monkeypatch.setattr("vidup.report.pictures.DETAIL", (40, 64))
    truth = torch.zeros(3, 90, 160)
    other = truth.clone()
    other[:, 70:80, 140:150] = 1
    whole, part = views({"a": truth, "b": other}, {"map": other[0]})
    assert (whole.width, whole.height, part.width, part.height) == (128, 72, 64, 40)
    assert [name for name, _ in part.pictures] == ["a", "b", "map"]
    stored = np.array(Image.open(io.BytesIO(base64.b64decode(part.pictures[1][1].partition(",")[2]))))
    assert stored.max() == 255 and stored.sum() == 255 * 300  # all of it is in the part, to the bit
    black, bright = heat(torch.tensor([[0.0, 1.0]]))[:, 0].T
    assert black.tolist() == [0, 0, 0] and bright.tolist() == pytest.approx([1, 250 / 255, 200 / 255])

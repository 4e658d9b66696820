"""The report's page: one HTML file, made of `page.html`, `page.css` and `page.js`, which needs no network."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

import vidup
from vidup.report.figures import Figure, written
from vidup.report.lines import Lines
from vidup.report.pictures import View
from vidup.report.plots import POINTS, Curve, plot, readings

_COLOURS = 8  # of results, in page.css


@dataclass(frozen=True)
class Row:
    """A result on the page."""

    name: str
    """Its unique name."""
    about: str
    """Size, number of frames and more, in words."""
    mean: Any
    """The means of its figures, in the fields that `Page.figures` names."""
    frames: Sequence[Any]
    """The figures of each frame."""


@dataclass(frozen=True)
class Page:
    """The contents of a page."""

    title: str
    intro: Sequence[str]
    """Paragraphs that describe what is compared."""
    figures: Sequence[Figure]
    rows: Sequence[Row]
    chosen: Sequence[tuple[float, str, Sequence[View]]]
    """(time, why, pictures) of each frame that is shown."""
    maps: str
    """A sentence that explains the maps among the pictures."""
    lines: Lines | None
    stretch: float
    """Width of a pixel divided by its height."""

    @property
    def plotted(self) -> list[Figure]:
        """The figures that have a plot."""
        return [figure for figure in self.figures if figure.plotted]


def plain(text: str) -> str:
    """A text, such as a file's name, without unprintable characters, of which some reverse the text's direction."""
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)


def html(page: Page) -> str:
    """The page as text."""
    folder = files("vidup.report")
    template, style, script = (
        (folder / f"page.{ending}").read_text(encoding="utf-8") for ending in ("html", "css", "js")
    )
    curves = [_curves(figure, page.rows) for figure in page.plotted]
    numbers = [readings(each, figure.digits) for each, figure in zip(curves, page.plotted, strict=True)]
    parts = [*_head(page), *_table(page), *_frames(page), *_plots(page, curves), *_lines(page), _FOOT]
    return Template(template).substitute(
        version=escape(vidup.__version__),
        title=escape(plain(page.title)),
        style=style,
        script=script,
        readings=json.dumps(numbers).replace("<", "\\u003c"),
        body="\n".join(parts),
    )


def _head(page: Page) -> Iterator[str]:
    yield f"<h1>{escape(plain(page.title))}</h1>"
    for paragraph in page.intro:
        yield f"<p>{escape(plain(paragraph))}</p>"


def _table(page: Page) -> Iterator[str]:
    heads = "".join(
        f'<th scope="col" title="{escape(figure.about)}">{escape(figure.title)}<small>{escape(figure.unit) or "&nbsp;"}'
        "</small></th>"
        for figure in page.figures
    )
    yield '<div class="sheet" tabindex="0" role="region" aria-label="means of all frames"><table>'
    yield f'<thead><tr><th scope="col">mean of all frames</th>{heads}</tr></thead><tbody>'
    for index, row in enumerate(page.rows):
        cells = _cells(page.figures, row.mean, [figure.name for figure in page.figures])
        yield (
            f'<tr><th scope="row"><i class="key {_style(index)}"></i>{escape(row.name)}'
            f"<small>{escape(row.about)}</small></th>{cells}</tr>"
        )
    for title in dict.fromkeys(title for figure in page.figures for title, _ in figure.beside):
        names = [dict(figure.beside).get(title) for figure in page.figures]
        cells = _cells(page.figures, page.rows[0].mean, names)
        yield f'<tr class="dim"><th scope="row">{escape(title)}, beside them</th>{cells}</tr>'
    yield "</tbody></table></div>"
    explained = "; ".join(f"{figure.title}: {figure.about}" for figure in page.figures)
    yield f'<p class="dim">{escape(explained)}.</p>'


def _cells(figures: Sequence[Figure], mean: Any, names: Sequence[str | None]) -> str:
    values = [None if name is None else getattr(mean, name) for name in names]
    return "".join(f"<td>{written(value, one.digits)}</td>" for value, one in zip(values, figures, strict=True))


def _frames(page: Page) -> Iterator[str]:
    yield "<h2>Frames</h2>"
    yield (
        '<p class="dim">The divider follows the pointer, a finger, and the arrow keys once a picture is chosen. '
        f'{escape(page.maps)} <span class="ramp" role="img" aria-label="from black to pale yellow"></span></p>'
    )
    for number, (time, why, views) in enumerate(page.chosen):
        yield f'<section id="frame-{number}"><h3>{escape(why.capitalize())}, at {time:.3f} s</h3>'
        for row in page.rows:
            if frame := next((frame for frame in row.frames if frame.time == time), None):
                yield f'<p class="dim">{escape(f"{row.name}: {_in_words(page.figures, frame)}")}</p>'
        for view in views:
            yield _slider(view, page.stretch)
        yield "</section>"


def _slider(view: View, stretch: float) -> str:
    names = [name for name, _ in view.pictures]
    sides = {0: ' class="left"', 1: ' class="right"'}  # at first, and without scripts
    images = "".join(
        f'<img src="{uri}" alt="{escape(name)}" draggable="false"{sides.get(index, "")}>'
        for index, (name, uri) in enumerate(view.pictures)
    )
    zooms = {"fit": "fit", **{str(factor): f"{factor}:1" for factor in (1, 2, 4, 8)}}
    style = f"--natural:{view.width}px;--wide:{view.shown}px;--aspect:{view.width / view.height * stretch:.4f}"
    return (
        '<figure class="view"><div class="controls">'
        f"<label>left {_select(dict(enumerate(names)))}</label>"
        f"<label>right {_select(dict(enumerate(names)), 1)}</label>"
        f"<label>zoom {_select(zooms)}</label></div>"
        f'<div class="window"><div class="stage" style="{style}">{images}'
        '<input type="range" min="0" max="100" value="50" aria-label="Divider between the left and the right picture">'
        '<div class="rule"></div><div class="grip" aria-hidden="true">⇔</div></div></div>'
        f"<figcaption>{escape(view.about)}</figcaption></figure>"
    )


def _select(choices: Mapping[Any, str], chosen: Any = None) -> str:
    """A list of choices: value -> text."""
    options = (
        f'<option value="{value}"{" selected" if value == chosen else ""}>{escape(text)}</option>'
        for value, text in choices.items()
    )
    return f"<select>{''.join(options)}</select>"


def _plots(page: Page, curves: Sequence[Sequence[Curve]]) -> Iterator[str]:
    yield "<h2>Over time</h2>"
    longer = max(len(row.frames) for row in page.rows) > POINTS
    yield (
        '<p class="dim">Point at a plot, or choose it and use the arrow keys, to read its numbers; upright lines are'
        f" the frames above.{' A point is the mean of several frames, and a band their range.' if longer else ''}</p>"
    )
    yield '<div class="plots">'
    marks = [time for time, _, _ in page.chosen]
    for number, (figure, each) in enumerate(zip(page.plotted, curves, strict=True)):
        unit = f" <small>{escape(figure.unit)}</small>" if figure.unit else ""
        yield plot(number, f"<b>{escape(figure.title)}</b>{unit}", each, figure.digits, marks)
    yield "</div>"


def _lines(page: Page) -> Iterator[str]:
    if (lines := page.lines) is None:
        return
    yield "<h2>One line over time</h2>"
    yield (
        f'<p class="dim">Row {lines.row}, from x {lines.left}, {lines.columns} pixels, in {lines.frames} frames from'
        f" {lines.begin:.3f} to {lines.end:.3f} s, each below the one before. What stands still is upright, what moves"
        " is slanted, what flickers is ragged from row to row.</p>"
    )
    height = max(96, min(384, 4 * lines.frames))
    yield '<div class="lines">'
    for name, uri in lines.pictures:
        yield (
            f'<figure><figcaption>{escape(name)}</figcaption><img src="{uri}" style="height:{height}px"'
            f' alt="one line over time: {escape(name)}"></figure>'
        )
    yield "</div>"


_FOOT = (
    f"<footer>vidup {escape(vidup.__version__)}. Figures are of luma; PSNR and SSIM as in scikit-image, GMSD by Xue"
    " et al. 2014, E*warp by Lai et al. 2018, tOF by Chu et al. 2020.</footer>"
)


def _curves(figure: Figure, rows: Sequence[Row]) -> list[Curve]:
    """A curve for each result, and for the references of a figure."""
    curves = [Curve(row.name, _style(index), *_over_time(row, figure.name)) for index, row in enumerate(rows)]
    beside = [
        Curve(title, f"b{index}", *_over_time(rows[0], name)) for index, (title, name) in enumerate(figure.beside)
    ]
    return [*curves, *beside]


def _over_time(row: Row, name: str) -> tuple[tuple[float, ...], tuple[float | None, ...]]:
    return tuple(frame.time for frame in row.frames), tuple(getattr(frame, name) for frame in row.frames)


def _style(index: int) -> str:
    """The CSS classes of a result's line; when colours repeat, lines are dashed."""
    return f"r{index % _COLOURS}" + (" more" if index >= _COLOURS else "")


def _in_words(figures: Sequence[Figure], frame: Any) -> str:
    return ", ".join(
        f"{figure.title} {written(value, figure.digits)}{f' {figure.unit}' if figure.unit else ''}"
        for figure in figures
        if figure.plotted and (value := getattr(frame, figure.name)) is not None
    )

"""The report, an HTML page: results beside the truth, or beside their input.

Figures are measured in one pass over the videos; then the chosen frames are decoded again for their pictures.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from vidup.comparison import Comparison, Measured, compare, enlarges, resized
from vidup.errors import ConfigError, MediaError, system_words
from vidup.report import choice, faith, figures, lines, pictures
from vidup.report.films import Film, film
from vidup.report.page import Page, Row, html, plain

log = logging.getLogger(__name__)

_ENDINGS = (".html", ".htm")
_FAR, _LEFT, _INVENTED = 32, 8, 32
"""Codes of 255 at which the maps are brightest: distance from the truth, from the input, from bicubic."""

Pictures: TypeAlias = Mapping[str, torch.Tensor]
"""Name -> RGB (3, H, W) in [0, 1]."""


def write(
    output: str | os.PathLike[str],
    first: str | os.PathLike[str],
    others: Sequence[str | os.PathLike[str]],
    overwrite: bool = False,
) -> Mapping[str, Measured[Any]]:
    """Measure results, and write a report.

    Args:
        output: the report's path, which ends in ``.html``.
        first: the truth; or, where it is smaller than the results, their input.
        others: the results, all of one size.
        overwrite: whether an existing report may be replaced.

    Returns:
        Path of a result -> its measurements.

    Raises:
        ConfigError: the output exists, or cannot be written.
        MediaError: a file cannot be read, the sizes do not fit, no frames coincide.
    """
    target = Path(output)
    check(target, overwrite)
    base, results = film(os.fspath(first)), {os.fspath(other): film(os.fspath(other)) for other in others}
    one = next(iter(results.values())).info
    for other in (result.info for result in results.values()):
        if (other.width, other.height) != (one.width, one.height):
            raise MediaError(
                f"{other.path}: is {other.width}x{other.height}, and {one.path} is {one.width}x{one.height};"
                " results to show beside each other have one size"
            )
    measured: dict[str, Measured[Any]]
    if enlarges(base.info, one):
        measured = {name: faith.against_input(base, result) for name, result in results.items()}
        page = _page(base, results, measured, _INPUT)
    else:
        measured = {name: compare(first, name) for name in results}
        if any(result.size != base.size for result in results.values()):
            raise MediaError(f"{base.info.path}: is turned another way than the results; compare needs one way")
        page = _page(base, results, measured, _TRUTH)
    _save(target, page)
    return measured


def write_of(output: Path, source: Film, result: Film, overwrite: bool, stop: Callable[[], bool]) -> None:
    """Write the report of a result beside its input; raises as `write`, and Stopped once `stop` returns true."""
    check(output, overwrite)
    name = result.info.path
    _save(output, _page(source, {name: result}, {name: faith.against_input(source, result, stop)}, _INPUT))


def check(output: Path, overwrite: bool) -> None:
    """Check that a report can be written, before anything is measured; raises ConfigError."""
    if output.suffix.lower() not in _ENDINGS:
        raise ConfigError(f"{output}: a report is a page, whose name ends in .html")
    if output.is_dir() or (output.exists() and not overwrite):
        raise ConfigError(f"{output}: exists; add -y (overwrite) to replace it, or give another name")
    if not output.parent.is_dir():
        raise ConfigError(f"{output.parent}: there is no such folder for the report; make it first")


@dataclass(frozen=True)
class _Reference:
    """What results are shown beside."""

    name: str
    shown: str
    """What its pictures are called."""
    about: str
    figures: Sequence[figures.Figure]
    ranks: tuple[str, ...]
    """The figures by which frames are chosen, see `choice.choose`."""
    views: Callable[[torch.Tensor, Pictures], list[pictures.View]]
    """From a picture of it, and those of the results at the same time."""
    maps: str
    """A sentence about the maps among them."""


def _beside_truth(truth: torch.Tensor, found: Pictures) -> list[pictures.View]:
    maps = {f"distance from the truth: {name}": pictures.difference(truth, one, _FAR) for name, one in found.items()}
    return pictures.views({_TRUTH.shown: truth, **found}, maps)


def _beside_input(small: torch.Tensor, found: Pictures) -> list[pictures.View]:
    large = resized(small, next(iter(found.values())).shape[-2:])
    maps: dict[str, torch.Tensor] = {}
    for name, one in found.items():
        left = pictures.difference(small, resized(one, small.shape[-2:]), _LEFT)
        maps |= {
            f"where it leaves the input: {name}": pictures.as_large(left, one.shape[-2:]),
            f"where most was invented: {name}": pictures.texture(one, large, _INVENTED),
        }
    return pictures.views({_INPUT.shown: large, **found}, maps)


_TRUTH = _Reference(
    "the truth", "the truth", "", figures.AGAINST_TRUTH, ("psnr",), _beside_truth,
    f"A map shows how far a result is from the truth: black is equal, pale is {_FAR} codes of 255 or more.",
)  # fmt: skip
_INPUT = _Reference(
    "the input", "input, bicubic", ", enlarged by bicubic", figures.AGAINST_INPUT, ("faithfulness", "invented"),
    _beside_input,
    "Maps of faithfulness show where a result, made as small as the input, leaves it (pale:"
    f" {_LEFT} codes of 255 or more), and where most is in it that bicubic does not have (pale: {_INVENTED}).",
)  # fmt: skip


def _page(first: Film, results: Mapping[str, Film], measured: Mapping[str, Measured[Any]], beside: _Reference) -> Page:
    names = _names(results)
    named = {names[path]: result for path, result in results.items()}
    frames = [one.frames for one in measured.values()]

    def views(time: float) -> list[pictures.View]:
        picture = first.at(time)
        found = {name: one for name, result in named.items() if (one := result.at(time)) is not None}
        return [] if picture is None or not found else beside.views(picture, found)

    *others, last = named
    height, width = first.size
    count, end = len(first.times), float(first.times[-1])
    facts = f"{width}x{height}, {count} frames, {end:.3f} s to the last{beside.about}"
    return Page(
        f"{', '.join(others)} and {last} beside {beside.name}" if others else f"{last} beside {beside.name}",
        [f"{beside.name.capitalize()}: {first.info.path}, {facts}.", *_remarks(first)],
        beside.figures,
        [Row(names[path], _about(results[path], one), one.mean(), one.frames) for path, one in measured.items()],
        [(time, why, views(time)) for time, why in choice.choose(frames, *beside.ranks).items()],
        beside.maps,
        lines.lines(first, named, choice.most_flickering(frames), beside.shown),
        first.stretch,
    )


def _names(paths: Mapping[str, Film]) -> dict[str, str]:
    """Path -> the unique name of a file in the report: its name, or its path where another file has that name."""
    short = {path: plain(Path(path).name) for path in paths}
    found: dict[str, str] = {}
    for path, name in short.items():
        taken = list(short.values()).count(name) > 1 or name in (_TRUTH.shown, _INPUT.shown)
        name = plain(path) if taken else name
        number = 1
        while name in found.values():  # paths that differ only in characters that `plain` replaces
            number += 1
            name = f"{plain(path)} ({number})"
        found[path] = name
    return found


def _about(result: Film, measured: Measured[Any]) -> str:
    height, width = result.size
    words = [f"{width}x{height}", f"{len(result.times)} frames"]
    if measured.missing:
        words.append(f"{measured.missing} without a counterpart")
    if isinstance(measured, Comparison) and measured.change_between_equal is not None:
        words.append(f"changes by {measured.change_between_equal:.2f} codes where the truth's frames are equal")
    return ", ".join(words)


def _remarks(one: Film) -> list[str]:
    transfer = {16: "PQ", 18: "HLG"}.get(one.info.color.transfer)
    return [f"It is HDR ({transfer}): pictures are shown as they are stored, which looks flat."] if transfer else []


def _save(output: Path, page: Page) -> None:
    """Write a page atomically."""
    part = output.with_name(f".{output.name[:80]}.{os.getpid()}.part")
    try:
        part.write_text(html(page), encoding="utf-8", errors="replace")
        part.replace(output)
    except OSError as error:
        raise MediaError(system_words(error, output)) from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    log.info("%s: written, %.1f MB", output, output.stat().st_size / 1e6)

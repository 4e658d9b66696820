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
from typing import Any

import torch

from vidup.comparison import Comparison, compare
from vidup.errors import ConfigError, MediaError, system_words
from vidup.picture.resample import resize
from vidup.report import choice, faith, figures, lines, pictures
from vidup.report.faith import Faithfulness
from vidup.report.films import Film, film
from vidup.report.page import Page, Row, html, plain

log = logging.getLogger(__name__)

_ENDINGS = (".html", ".htm")
_FAR, _LEFT, _INVENTED = 32, 8, 32
"""Codes of 255 at which the maps are brightest: distance from the truth, from the input, from bicubic."""
_TRUTH, _INPUT = "the truth", "input, bicubic"


@dataclass(frozen=True)
class Study:
    """The measurements of a report."""

    results: Mapping[str, Comparison] | Mapping[str, Faithfulness]
    """Path of a result -> its measurements."""


def write(
    output: str | os.PathLike[str],
    first: str | os.PathLike[str],
    others: Sequence[str | os.PathLike[str]],
    overwrite: bool = False,
) -> Study:
    """Measure results, and write a report.

    Args:
        output: the report's path, which ends in ``.html``.
        first: the truth; or, where it is smaller than the results, their input.
        others: the results, all of one size.
        overwrite: whether an existing report may be replaced.

    Raises:
        ConfigError: the output exists, or cannot be written.
        MediaError: a file cannot be read, the sizes do not fit, no frames coincide.
    """
    target, names = Path(output), list(dict.fromkeys(os.fspath(other) for other in others))
    check(target, overwrite)
    base, results = film(os.fspath(first)), {name: film(name) for name in names}
    stored = [(one.info.height, one.info.width) for one in (base, *results.values())]
    odd = next((place for place, size in enumerate(stored[1:]) if size != stored[1]), None)
    if odd is not None:
        (height, width), (other_height, other_width) = stored[1], stored[odd + 1]
        raise MediaError(
            f"{names[odd]}: is {other_width}x{other_height}, and {names[0]} is {width}x{height};"
            " results to show beside each other have one size"
        )
    if min(stored[1]) > min(stored[0]) and max(stored[1]) > max(stored[0]):
        study = Study({name: faith.against_input(base, result) for name, result in results.items()})
        _save(target, _beside_input(base, results, study.results))
        return study
    compared = {name: compare(os.fspath(first), name) for name in names}
    _save(target, _beside_truth(base, results, compared))
    return Study(compared)


def write_of(output: Path, source: Film, result: Film, overwrite: bool, stop: Callable[[], bool]) -> None:
    """Write the report of a result beside its input.

    Raises:
        ConfigError, MediaError: as `write`.
        Stopped: `stop` returned true before the end.
    """
    check(output, overwrite)
    measured = {result.info.path: faith.against_input(source, result, stop)}
    _save(output, _beside_input(source, {result.info.path: result}, measured))


def check(output: Path, overwrite: bool) -> None:
    """Check that a report can be written, before anything is measured.

    Raises:
        ConfigError: it exists, its ending is wrong, or its folder does not exist.
    """
    if output.suffix.lower() not in _ENDINGS:
        raise ConfigError(f"{output}: a report is a page, whose name ends in .html")
    if output.is_dir() or (output.exists() and not overwrite):
        raise ConfigError(f"{output}: exists; add -y (overwrite) to replace it, or give another name")
    if not output.parent.is_dir():
        raise ConfigError(f"{output.parent}: there is no such folder for the report; make it first")


def _beside_truth(truth: Film, results: Mapping[str, Film], measured: Mapping[str, Comparison]) -> Page:
    if any(result.size != truth.size for result in results.values()):
        raise MediaError(f"{truth.info.path}: is turned another way than the results; compare needs one way")
    names = _names(results)
    chosen = choice.choose([one.frames for one in measured.values()], "psnr")

    def views(time: float) -> list[pictures.View]:
        first = truth.at(time)
        if first is None:
            return []
        found = _at(time, results, names)
        maps = {
            f"distance from the truth: {name}": pictures.difference(first, one, _FAR) for name, one in found.items()
        }
        return pictures.views({_TRUTH: first, **found}, maps)

    intro = [f"The truth: {truth.info.path}, {_facts(truth)}.", *_remarks(truth)]
    return Page(
        f"{_listed(names)} beside the truth",
        intro,
        figures.AGAINST_TRUTH,
        [
            Row(names[path], _about(results[path], one.missing, one.change_between_equal), one.mean(), one.frames)
            for path, one in measured.items()
        ],
        [(one, views(one.time)) for one in chosen],
        f"A map shows how far a result is from the truth: black is equal, pale is {_FAR} codes of 255 or more.",
        lines.lines(truth, _named(results, names), _flickering(measured), _TRUTH),
        truth.stretch,
    )


def _beside_input(source: Film, results: Mapping[str, Film], measured: Mapping[str, Any]) -> Page:
    names = _names(results)
    chosen = choice.choose([one.frames for one in measured.values()], "faithfulness", "invented")

    def views(time: float) -> list[pictures.View]:
        small, found = source.at(time), _at(time, results, names)
        if small is None or not found:
            return []
        large = faith.enlarged(small, next(iter(found.values())))
        maps: dict[str, torch.Tensor] = {}
        for name, one in found.items():
            back = resize(one[None], small.shape[-2:])[0].clamp(0, 1)
            left = pictures.as_large(pictures.difference(small, back, _LEFT), one.shape[-2:])
            maps |= {
                f"where it leaves the input: {name}": left,
                f"where most was invented: {name}": pictures.texture(one, large, _INVENTED),
            }
        return pictures.views({_INPUT: large, **found}, maps)

    intro = [f"The input: {source.info.path}, {_facts(source)}, enlarged by bicubic.", *_remarks(source)]
    return Page(
        f"{_listed(names)} beside the input",
        intro,
        figures.AGAINST_INPUT,
        [
            Row(names[path], _about(results[path], one.missing), one.mean(), one.frames)
            for path, one in measured.items()
        ],
        [(one, views(one.time)) for one in chosen],
        "Maps of faithfulness show where a result, made as small as the input, leaves it (pale:"
        f" {_LEFT} codes of 255 or more), and where most is in it that bicubic does not have (pale: {_INVENTED}).",
        lines.lines(source, _named(results, names), _flickering(measured), _INPUT),
        source.stretch,
    )


def _at(time: float, results: Mapping[str, Film], names: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Name of a result -> its picture at a time, if it has one."""
    found = {names[path]: result.at(time) for path, result in results.items()}
    return {name: picture for name, picture in found.items() if picture is not None}


def _flickering(measured: Mapping[str, Any]) -> float | None:
    return choice.most_flickering([one.frames for one in measured.values()])


def _named(results: Mapping[str, Film], names: Mapping[str, str]) -> dict[str, Film]:
    return {names[path]: result for path, result in results.items()}


def _names(paths: Mapping[str, Film]) -> dict[str, str]:
    """Path -> the unique name of a file in the report: its name, or its path where another file has that name."""
    short = {path: plain(Path(path).name) for path in paths}
    found: dict[str, str] = {}
    for path, name in short.items():
        name = plain(path) if list(short.values()).count(name) > 1 or name in (_TRUTH, _INPUT) else name
        number = 1
        while name in found.values():  # paths that differ only in characters that `plain` replaces
            number += 1
            name = f"{plain(path)} ({number})"
        found[path] = name
    return found


def _listed(names: Mapping[str, str]) -> str:
    *others, last = names.values()
    return f"{', '.join(others)} and {last}" if others else last


def _facts(one: Film) -> str:
    height, width = one.size
    return f"{width}x{height}, {len(one.times)} frames, {float(one.times[-1]):.3f} s to the last"


def _about(one: Film, missing: int, change: float | None = None) -> str:
    height, width = one.size
    words = [f"{width}x{height}", f"{len(one.times)} frames"]
    words += [f"{missing} without a counterpart"] if missing else []
    words += [f"changes by {change:.2f} codes where the truth's frames are equal"] if change is not None else []
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

"""`vidup.plan`, which `vidup probe` prints: what a job would do with a file, without writing anything."""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from vidup import engines
from vidup.config import Given, Runtime, Settings, settings_of
from vidup.errors import MediaError
from vidup.frame import MediaInfo
from vidup.job import describe, pace, rehearse, stills
from vidup.job import plan as plans
from vidup.media import containers, decoding
from vidup.media.video import Video
from vidup.picture import color, flaws
from vidup.upscaler import Upscaler

_PLACES, _FRAMES = (0.15, 0.5, 0.85), 2  # where an input's flaws are measured, and in how many frames


@dataclass(frozen=True)
class Plan:
    """What a job would do with a file. ``str()`` of it is the text that ``vidup probe`` prints."""

    input: Path
    output: Path
    info: MediaInfo | None
    """What is in the input; None for a still image."""
    size: tuple[int, int]
    """(height, width) of the output's pictures."""
    frames: int
    """The number of the output's frames."""
    streams: tuple[str, ...]
    """What will be done with each other stream, in words."""
    notes: tuple[str, ...]
    """What will be converted or lost, and other notes, in words."""
    disk: int = 0
    """The most bytes of disk that the job needs, with the output; an estimate for ordinary pictures."""
    memory: int = 0
    """Bytes of the host's memory for frames."""
    device_memory: int | None = None
    """Bytes of the device's memory for the model; None where only the loaded model can tell."""
    seconds: float | None = None
    """The duration of the job; None where it was not measured, or there are too few frames."""
    computed: float | None = None
    """The share of pixels that will be computed, where the rest is carried along the motion, estimated from some frames
    of the middle; None where all are, or the frames are too large for a quick estimate."""
    facts: tuple[tuple[str, str], ...] = ()
    """What is in the input and what it will become, as (head, text) pairs."""
    table: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """The same and more, as values for JSON."""

    def __str__(self) -> str:
        (_, file), *others = self.facts
        lines = [*(f"{head:9} {words}" for head, words in others), *(f"stream {line}" for line in self.streams)]
        return "\n".join([f"{self.input}: {file}", *(f"  {line}" for line in [*lines, *self.notes])])


def plan(
    input: str | os.PathLike[str] | Video,
    output: str | os.PathLike[str] | None = None,
    settings: Given = None,
    runtime: Runtime | None = None,
    *,
    measure: bool = False,
    pictures: bool = True,
) -> Plan:
    """Find out what a job would do with a file; no model is loaded unless `measure` is true.

    Args:
        input: a video or a still image; a `Video` that is open is not read again, which takes seconds for a long film.
        output: the output path; if given, the join of all streams is rehearsed, where that is cheap.
        settings: what decides the result; a string or a path is a preset.
        runtime: where and how it would run.
        measure: load the model and time it on the first frames.
        pictures: decode a few frames to describe what they look like and, where pictures are carried, to estimate the
            share that is computed, which takes up to some seconds; without it these two are missing.

    Raises:
        ConfigError: the settings do not fit the input or the output.
        MediaError: the input cannot be read.
        EngineError: the model is missing.
    """
    settings, runtime = settings_of(settings), runtime or Runtime()
    known = input.info if isinstance(input, Video) else None
    source = Path(input.info.path if isinstance(input, Video) else input)
    target = plans.default_output(source, settings) if output is None else Path(output)
    if containers.is_picture(source, target):
        return _of_still(source, target, settings)
    job, more = plans.plan(source, target, settings, known), list[str]()
    if output is not None:
        job, more = rehearse.foresee(job)
    notes = [*describe.describe(job)[1:], *more]
    seen = None
    try:
        seen = pace.foresee(job, pace.QUICK) if pictures else None
    except MediaError as error:  # a note, because all else about the file is known
        notes.append(f"note: how many pixels will be computed is not known: {error}")
    computed, seconds = seen and seen.computed, None
    if measure:
        with Upscaler(settings, runtime) as upscaler:
            seconds = pace.seconds_left(job, upscaler, job.high - job.low, computed)
    footage = _footage(job, notes) if pictures else {}
    table = _table(job, runtime) | {"computed": computed, "notes": notes, "footage": footage}
    facts = [*describe.facts(job, table["device_bytes"], seen)]
    if footage:
        facts.insert(2, ("footage", "; ".join(footage["words"])))
    return Plan(
        source, target, job.info, (job.encoding.height, job.encoding.width), len(job.times),
        tuple(describe.streams(job)), tuple(notes),
        table["disk_bytes"], table["host_bytes"], table["device_bytes"], seconds, computed, tuple(facts), table,
    )  # fmt: skip


def _table(job: plans.Job, runtime: Runtime) -> dict[str, Any]:
    planner, size = engines.foresee(job.settings, runtime, plans.pixels(job)), job.input_size
    found = asdict(job.info) | {
        "output": str(job.output),
        "encoding": asdict(job.encoding),
        "plan": [asdict(stream) for stream in job.streams],
        "output_frames": len(job.times),
        "disk_bytes": plans.disk(job, job.high - job.low),
        "host_bytes": plans.host_memory(job),
        "device_bytes": planner.planned(planner.choose(*size), *size) if planner is not None else None,
    }
    del found["pts"]
    return found


def _footage(job: plans.Job, notes: list[str]) -> dict[str, Any]:
    """What the pictures look like, as values for JSON."""
    try:
        return describe.footage(describe.quantiser(job), _flaws(job))
    except MediaError as error:
        notes.append(f"note: what the pictures look like is not known: {error}")
        return {}


def _flaws(job: plans.Job) -> flaws.Flaws:
    """Measure the flaws of a job's input at up to three keyframes."""
    info, found = job.info, list[flaws.Flaws]()
    entries = [time for time, _ in info.entries]
    for share in _PLACES if entries else _PLACES[:1]:
        place = job.low + int(share * (job.high - job.low)) if entries else job.low
        entry = bisect_right(entries, info.pts[place]) - 1
        if entry >= 0:
            place = min(max(job.low, bisect_left(info.pts, entries[entry])), job.high - 1)
        with closing(decoding.decode(info, info.pts[place], None, job.settings)) as frames:
            read = [color.to_rgb(frame, torch.device("cpu")) for frame in islice(frames, _FRAMES)]
        if read:
            found.append(flaws.measure(torch.stack(read)))
    return flaws.together(found) if found else flaws.Flaws()


def _of_still(source: Path, target: Path, settings: Settings) -> Plan:
    table = stills.facts(source, target, settings)
    size, footage = (table["output_height"], table["output_width"]), "; ".join(table["footage"]["words"])
    facts = ("file", table["words"]), ("footage", footage), ("output", f"{target}: {size[1]}x{size[0]}")
    notes = tuple(f"note: {note}" for note in table["notes"])
    return Plan(source, target, None, size, 1, (), notes, facts=facts, table=table)

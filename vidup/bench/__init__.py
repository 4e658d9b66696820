"""`vidup bench`: measure speed and memory of this machine with some settings, or estimate a file's job."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from vidup.config import Runtime, Settings
from vidup.errors import ConfigError
from vidup.options import add_options, from_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command ``bench``."""
    parser.add_argument("--input", metavar="FILE", help="a video; made-up frames where not given")
    parser.add_argument("--frame-size", default="480x270", metavar="WxH", help="of made-up frames (default: 480x270)")
    parser.add_argument("--frames", type=int, default=4, metavar="INT", help="how many are timed (default: 4)")
    parser.add_argument("-p", "--preset", metavar="NAME", help="a preset, or the path of a .toml")
    parser.add_argument(
        "--random-weights",
        action="store_true",
        help="the x4 upscaler without a download: as fast, the picture is noise",
    )
    parser.add_argument(
        "--narrower", type=int, default=1, choices=(1, 2, 4, 8), help="divide the widths of --random-weights by this"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_options(parser, Settings, Runtime)


def report(arguments: argparse.Namespace) -> str:
    """Run the command; returns the text that it prints."""
    from vidup.bench import subjects
    from vidup.bench.stopwatch import describe, describe_estimate, estimate, measure
    from vidup.engines import windows
    from vidup.job import pace, plan
    from vidup.upscaler import Upscaler

    typed = vars(arguments)
    if arguments.frames < 1:
        raise ConfigError(f"frames = {arguments.frames}: must be 1 or more")
    settings, runtime = from_options(Settings, typed, arguments.preset), from_options(Runtime, typed)
    if arguments.random_weights and settings.model != Settings.model:
        raise ConfigError(f"model = {settings.model!r}: random_weights are the x4 upscaler's; leave one of the two out")
    if runtime.workers != 1 or runtime.ray is not None:
        raise ConfigError("workers, ray: bench measures one worker, in this process; leave them out")
    seen = None
    with Upscaler(settings, runtime) as upscaler:
        if arguments.random_weights:
            upscaler.__dict__["engine"] = subjects.random_engine(settings, runtime, arguments.narrower)
        whole = None
        if arguments.input:
            job, frames, decoding = subjects.from_file(Path(arguments.input), settings, arguments.frames)
            upscaler.expect(plan.pixels(job))
            found = measure(upscaler, frames, job.encoding, decoding, job.turn)
            seen = pace.foresee(job, fit=windows.fixed if upscaler.compiles else None)
            whole = estimate(job, upscaler, found, seen)
        else:
            upscaler.expect(2**62)  # as in a long film
            found = measure(upscaler, *subjects.made_up(arguments.frame_size, arguments.frames, upscaler))
    if arguments.json:
        table = asdict(found) | {"frames_per_second": found.frames_per_second, "share": found.share}
        return json.dumps(table | ({"estimate": asdict(whole)} if whole else {}))
    return "\n".join([*describe(found), *(describe_estimate(whole, arguments.input, seen) if whole else ())])

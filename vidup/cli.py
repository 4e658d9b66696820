"""The command line: parse, call the library, exit code. Standard output carries data only.

Exit codes: 0 done, 1 failed, 2 usage or configuration, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import vidup
from vidup.config import Runtime, Settings, add_options, from_options, preset_names
from vidup.errors import ConfigError, VidupError

if TYPE_CHECKING:
    from vidup.compare import FrameFigures
    from vidup.progress import Sink

log = logging.getLogger("vidup")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = _parser().parse_args(argv)
    _set_up_logging(arguments.verbose)
    try:
        code: int = arguments.command(arguments)
        return code
    except ConfigError as error:
        return _fail(error, arguments.verbose, 2)
    except VidupError as error:
        return _fail(error, arguments.verbose, 1)
    except KeyboardInterrupt:
        print("vidup: interrupted; nothing was left at the output path", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read standard output is gone
        sys.stderr.close()
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vidup",
        description="Upscale video: every frame at its own time, the original sound untouched.",
        epilog="vidup COMMAND --help tells the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"vidup {vidup.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    upscale = commands.add_parser(
        "upscale",
        help="upscale videos or still images",
        description=(
            "Upscale videos or still images. Without -o the output stands beside the input, with _x4 in its name."
        ),
    )
    upscale.add_argument("inputs", nargs="+", metavar="INPUT", help="a file, or several with -o FOLDER")
    upscale.add_argument(
        "-o",
        "--output",
        metavar="PATH",
        help="the output file, or a folder for many inputs; the ending chooses the container: .mp4, .mov, .mkv, .webm",
    )
    upscale.add_argument("-p", "--preset", metavar="NAME", help=f"{', '.join(preset_names())}, or the path of a .toml")
    upscale.add_argument(
        "--progress",
        choices=("bar", "json", "none"),
        default="bar",
        help="a bar, or one JSON object a line on standard output (default: bar)",
    )
    add_options(upscale, Settings)
    add_options(upscale, Runtime)
    upscale.set_defaults(command=_upscale)

    probe = commands.add_parser(
        "probe",
        help="tell what is in a file, and what would become of it",
        description="Tell what is in a file, and what would become of each stream.",
    )
    probe.add_argument("input", metavar="INPUT")
    probe.add_argument("-o", "--output", metavar="PATH", help="the output that is planned")
    probe.add_argument("--json", action="store_true", help="print one JSON object")
    probe.set_defaults(command=_probe)

    compare = commands.add_parser(
        "compare",
        help="measure a video against the truth",
        description="Measure a video against the truth, frame by frame: PSNR, SSIM, GMSD (lower is better), gradient"
        " energy (1 is the truth's), and the change between frames where the truth's are equal.",
    )
    compare.add_argument("truth", metavar="TRUTH")
    compare.add_argument("other", metavar="OTHER")
    compare.add_argument("--json", action="store_true", help="print one JSON object, with every frame")
    compare.set_defaults(command=_compare)

    listing = commands.add_parser(
        "list",
        help="list engines, presets, encoders and devices",
        description="List engines, presets, encoders and devices.",
    )
    listing.add_argument("what", nargs="?", choices=("engines", "presets", "encoders", "devices"))
    listing.add_argument("--json", action="store_true", help="print one JSON object")
    listing.set_defaults(command=_list)

    for command in (upscale, probe, compare, listing):
        command.add_argument("-v", "--verbose", action="store_true", help="tell more, and show tracebacks")
    return parser


def _upscale(arguments: argparse.Namespace) -> int:
    from vidup.job import default_output, upscale_file
    from vidup.upscaler import Upscaler

    typed = vars(arguments)
    settings = from_options(Settings, typed, arguments.preset)
    folder = _output_folder(arguments.inputs, arguments.output)
    failures = 0
    with Upscaler(settings, from_options(Runtime, typed)) as upscaler:
        for source in arguments.inputs:
            target = folder / default_output(Path(source), settings).name if folder else arguments.output
            try:
                with _progress(arguments.progress) as sink:
                    log.info("%s: done", upscale_file(upscaler, source, target, sink))
            except VidupError as error:
                if len(arguments.inputs) == 1:
                    raise
                failures += 1
                _fail(error, arguments.verbose, 1)
    if failures:
        print(f"vidup: {failures} of {len(arguments.inputs)} files failed; the others are done", file=sys.stderr)
    return 1 if failures else 0


def _output_folder(inputs: Sequence[str], output: str | None) -> Path | None:
    """The folder that many inputs go to; None where the output is a file or stands beside its input."""
    if output is None or not (len(inputs) > 1 or output.endswith(("/", "\\")) or Path(output).is_dir()):
        return None
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; many inputs need a folder as output")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _progress(kind: str) -> Iterator[Sink | None]:
    from vidup.progress import Bar, json_lines

    if kind == "bar":
        with closing(Bar()) as bar:
            yield bar
    else:
        yield json_lines(sys.stdout) if kind == "json" else None


def _probe(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from vidup.job import IMAGES, default_output, describe, plan
    from vidup.reader import probe

    settings = Settings(model="bicubic")  # any model would do: nothing is loaded
    source = Path(arguments.input)
    target = Path(arguments.output) if arguments.output else default_output(source, settings)
    info = probe(source)
    table = asdict(info) | {"output": str(target)}
    del table["pts"]
    if source.suffix.lower() in IMAGES and target.suffix.lower() in IMAGES:
        line = f"{source}: a still image of {info.width}x{info.height} {info.pix_fmt}; output {target}"
        print(json.dumps(table, default=str) if arguments.json else line)
        return 0
    job = plan(source, target, settings)
    if arguments.json:
        table |= {"plan": [asdict(stream) for stream in job.streams], "notes": describe(job)[1:]}
        print(json.dumps(table, default=str))
        return 0
    kind = "variable" if info.variable_rate else "constant"
    light = "full" if info.color.full_range else "limited"
    encoding = job.encoding
    print(f"{info.path}: {info.container}, {info.frames} frames, {float(info.rate):.3f} a second ({kind})")
    print(f"  picture   {info.width}x{info.height} {info.pix_fmt}, {light} range, rotation {info.rotation}", end="")
    print(f", pixels {info.sample_aspect_ratio}, begins at {float(info.begin):.3f} s")
    print(f"  output    {job.output}: {encoding.width}x{encoding.height} {encoding.pix_fmt}, {encoding.codec}")
    for stream in job.streams:
        reason = f": {stream.reason}" if stream.reason else ""
        print(f"  stream {stream.index}  {stream.action:8} {stream.name} {info.streams[stream.index].detail}{reason}")
    if info.chapters:
        print(f"  chapters  {info.chapters}")
    for note in describe(job)[1:]:
        print(f"  {note}")
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from vidup.compare import compare

    result = compare(arguments.truth, arguments.other)
    mean = result.mean()
    if arguments.json:
        # JSON has no infinity, which PSNR is for equal frames
        rows = [
            {key: value if isfinite(value) else None for key, value in asdict(f).items()}
            for f in (mean, *result.frames)
        ]
        del rows[0]["time"]
        table = {"mean": rows[0], "missing": result.missing, "change_between_equal": result.change_between_equal}
        print(json.dumps(table | {"frames": rows[1:]}))
        return 0
    print("  time s   PSNR dB     SSIM     GMSD   energy")
    for frame in result.frames:
        print(f"{frame.time:8.3f}  {_figures(frame)}")
    print(f"    mean  {_figures(mean)}")
    print(f"{len(result.frames)} frames compared, {result.missing} without a counterpart")
    if result.change_between_equal is not None:
        print(f"largest change where the truth's frames are equal: {result.change_between_equal:.2f} of 255")
    return 0


def _figures(frame: FrameFigures) -> str:
    return f"{frame.psnr:8.3f} {frame.ssim:8.4f} {frame.gmsd:8.4f} {frame.gradient_energy:8.3f}"


def _list(arguments: argparse.Namespace) -> int:
    from vidup.encoder import available
    from vidup.engines import INTERPOLATIONS, devices

    table = {
        "engines": {
            "x4": "Stable Diffusion x4 upscaler, from the hub or its cache",
            "mini": "small x4 diffusion model that ships with vidup",
            **{name: "baseline: resampling without a model, any scale" for name in INTERPOLATIONS},
        },
        "presets": {name: _preset_line(name) for name in preset_names()},
        "encoders": available(),
        "devices": {name: "" for name in devices()},
    }
    if arguments.what is not None:
        table = {arguments.what: table[arguments.what]}
    if arguments.json:
        print(json.dumps(table))
        return 0
    for title, rows in table.items():
        print(title)
        for name, line in rows.items():
            print(f"  {name:12} {line}".rstrip())
    return 0


def _preset_line(name: str) -> str:
    settings = Settings.preset(name)
    return (
        f"model {settings.model}, {settings.sampler}, {settings.steps} steps, guidance {settings.guidance_scale:g},"
        f" noise level {settings.noise_level}"
    )


def _set_up_logging(verbose: bool) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("vidup: %(message)s"))
    log.handlers = [handler]
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    log.propagate = False


def _fail(error: Exception, verbose: bool, code: int) -> int:
    if verbose:
        logging.getLogger("vidup").error("%s", error, exc_info=error)
    else:
        print(f"vidup: {error}", file=sys.stderr)
    return code

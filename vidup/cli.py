"""The command line: parse, call the library, exit code. Standard output carries data only.

Exit codes: 0 done, 1 failed, 2 usage or configuration, 130 interrupted.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, redirect_stdout, suppress
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidup import bench, terminal
from vidup.arguments import parser
from vidup.config import Runtime, Settings
from vidup.errors import ConfigError, MediaError, Stopped, VerifyError, VidupError, system_words
from vidup.options import from_options, preset_line
from vidup.presets import preset_names

if TYPE_CHECKING:
    from vidup.comparison import Measured
    from vidup.job.progress import Sink

log = logging.getLogger("vidup")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    Args:
        argv: its arguments; None takes this process's, and relies on the process ending afterwards.
    """
    if argv is not None:
        return _main(argv)
    terminal.open_streams()
    try:
        return _main(argv)
    finally:
        gc.freeze()  # else Python, as it exits, collects garbage among all of torch's objects, several times


@contextmanager
def _loading(arguments: argparse.Namespace) -> Iterator[None]:
    """Exclude what the block imports from garbage collection, if the process is the command's own.

    torch alone has 170,000 objects, and collecting among them takes a quarter of a short job's time.
    """
    if not arguments.is_own_process:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _main(argv: Sequence[str] | None) -> int:
    try:
        arguments = parser(_COMMANDS).parse_args(argv)
    finally:  # --help and --version end here
        with suppress(MediaError, BrokenPipeError):
            terminal.flush()
    _set_up_logging(arguments.verbose, arguments.quiet)
    gently = arguments.command is _upscale
    try:
        with terminal.stopping(gently, lasting=argv is None) as stop:
            arguments.stop, arguments.is_own_process = stop.is_set, argv is None
            return _run(arguments)
    except (KeyboardInterrupt, Stopped):
        kept = "; what is done is kept: the same command goes on from there" if gently else ""
        terminal.say(f"vidup: interrupted{kept}")
        return 130


def _run(arguments: argparse.Namespace) -> int:
    try:
        code: int = arguments.command(arguments)
        terminal.flush()
        return code
    except Stopped:
        raise
    except ConfigError as error:
        return _fail(error, arguments.verbose, 2)
    except VidupError as error:
        return _fail(error, arguments.verbose, 1)
    except BrokenPipeError:  # the reader of standard output is gone
        return 1
    except OSError as error:  # too many open files, a folder that is gone
        return _fail(MediaError(system_words(error)), arguments.verbose, 1)


def _upscale(arguments: argparse.Namespace) -> int:
    from vidup import paths  # with PyAV

    typed = vars(arguments)
    settings, runtime = from_options(Settings, typed, arguments.preset), from_options(Runtime, typed)
    if "-" in arguments.inputs or arguments.output == "-":
        return _pipe(arguments, settings, runtime)
    sources = paths.expand(arguments.inputs, arguments.output)
    folder = paths.folder_of(sources, arguments.output)
    output = Path(arguments.output) if arguments.output and folder is None else None
    paths.check(sources, output, settings, runtime.overwrite or runtime.skip_done)
    with _loading(arguments):
        from vidup.job import default_output, upscale_files  # with torch: only now
        from vidup.job.outlook import plan

    files = [(source, folder / default_output(source, settings).name if folder else output) for source in sources]
    if arguments.dry_run:
        for source, target in files:
            terminal.put(str(plan(source, target, settings, runtime)))
        return 0
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    # Ray prints to standard output, which is for data.
    with _progress(arguments) as sink, redirect_stdout(sys.stderr):
        outcomes = upscale_files(files, settings, runtime=runtime, on_progress=sink, stop=arguments.stop)
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    if errors and len(outcomes) == 1:
        raise errors[0]
    for error in errors:
        _fail(error, arguments.verbose, 1)
    if errors:
        others = "; the others are done" if len(errors) < len(outcomes) else ""
        terminal.say(f"vidup: {len(errors)} of {len(outcomes)} files failed{others}")
    return 1 if errors else 0


def _pipe(arguments: argparse.Namespace, settings: Settings, runtime: Runtime) -> int:
    """Y4M from standard input, or a file, to standard output."""
    from vidup import paths  # with PyAV

    if arguments.output != "-" or len(arguments.inputs) != 1:
        raise ConfigError("-: is one input that goes to standard output, with -o -; ffmpeg makes a file of that")
    if arguments.progress == "json" or arguments.dry_run:
        what = "dry_run" if arguments.dry_run else "progress json"
        raise ConfigError(f"{what}: would go to standard output, which is the video's; leave it out")
    if runtime.report:
        raise ConfigError("report: is of a file, and standard output is none; give -o a file")
    name = arguments.inputs[0]
    paths.check_settings(settings)
    if name != "-":
        paths.check([Path(name)], None, settings, overwrite=True)
    if sys.stdout.isatty() or (name == "-" and sys.stdin.isatty()):
        chain = "ffmpeg -i in.mp4 -f yuv4mpegpipe - | vidup upscale - -o - | ffmpeg -i - out.mp4"
        raise ConfigError(f"-: is a terminal, and should be another program: {chain}")
    with _loading(arguments):
        from vidup.job.piping import upscale_piped
        from vidup.job.progress import Tracker
        from vidup.upscaler import Upscaler

    source, target = Path(name) if name != "-" else sys.stdin.buffer, sys.stdout.buffer
    upscaler = Upscaler(settings, runtime, stop=arguments.stop)
    with _progress(arguments) as sink, redirect_stdout(sys.stderr), upscaler:
        try:
            upscale_piped(upscaler, source, target, Tracker(sink), arguments.stop)
        except Stopped:
            terminal.say("vidup: interrupted; what was upscaled is with the next program")
            return 130
        except MediaError:
            terminal.silence(target)  # `sys.stdout` is standard error here
            raise
    return 0


@contextmanager
def _progress(arguments: argparse.Namespace) -> Iterator[Sink | None]:
    from vidup.job.progress import Bar, json_lines

    if arguments.progress == "bar" and not arguments.quiet:
        with closing(Bar()) as bar:
            yield bar
    else:
        yield json_lines(sys.stdout) if arguments.progress == "json" else None
        with suppress(MediaError, BrokenPipeError):  # unread progress is no failure of the job
            terminal.flush()


def _probe(arguments: argparse.Namespace) -> int:
    from vidup import paths  # with PyAV

    typed = vars(arguments)
    settings, runtime = from_options(Settings, typed, arguments.preset), from_options(Runtime, typed)
    source, output = Path(arguments.input), Path(arguments.output) if arguments.output else None
    paths.check([source], None, settings, overwrite=True)
    with _loading(arguments):
        from vidup.job.outlook import plan

    found = plan(source, output, settings, runtime)
    terminal.put(json.dumps(found.table, default=str) if arguments.json else str(found))
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from vidup import paths  # with PyAV

    paths.check_there(arguments.source, arguments.output)
    with _loading(arguments):
        from vidup.job.verify import verify

    settings = from_options(Settings, vars(arguments))
    try:
        receipt = verify(arguments.source, arguments.output, settings, fast=arguments.fast)
    except VerifyError as error:
        if not arguments.json:
            raise
        terminal.put(json.dumps({"verified": False, "error": str(error)}))
        return 1
    if arguments.json:
        terminal.put(json.dumps({"verified": True, **asdict(receipt)}, default=str))
        return 0
    for line in receipt.lines():
        terminal.put(line)
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from vidup import paths  # with PyAV

    paths.check_there(arguments.truth, *arguments.others)
    with _loading(arguments):
        from vidup.comparison import compare

    results: Mapping[str, Measured[Any]]
    if arguments.output is None:
        results = {name: compare(arguments.truth, name) for name in arguments.others}
    else:
        from vidup import report

        results = report.write(arguments.output, arguments.truth, arguments.others, arguments.overwrite)
    if arguments.json:
        tables = [{"path": name, **_compared(result)} for name, result in results.items()]
        terminal.put(json.dumps(tables[0] if len(tables) == 1 else {"results": tables}))
        return 0
    for name, result in results.items():
        if len(results) > 1:
            terminal.put(f"{name}:")
        _put_figures(result)
    return 0


def _compared(result: Measured[Any]) -> dict[str, Any]:
    """Measurements as values for JSON, which has no infinity, such as the PSNR of equal frames."""
    rows = [
        {key: value if value is not None and isfinite(value) else None for key, value in asdict(frame).items()}
        for frame in (result.mean(), *result.frames)
    ]
    del rows[0]["time"]
    others = {name: value for name, value in vars(result).items() if name != "frames"}
    return {"mean": rows[0], **others, "frames": rows[1:]}


def _put_figures(result: Measured[Any]) -> None:
    columns = {name: column for name, column in _COLUMNS.items() if hasattr(result.frames[0], name)}
    terminal.put(f"  time s  {' '.join(head for head, _ in columns.values())}")
    for begin, frame in [*((f"{frame.time:8.3f}", frame) for frame in result.frames), ("    mean", result.mean())]:
        row = [(getattr(frame, name), len(head), digits) for name, (head, digits) in columns.items()]
        cells = (f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}" for value, width, digits in row)
        terminal.put(f"{begin}  {' '.join(cells)}")
    change = getattr(result, "change_between_equal", None)
    how = "beside the input's" if "faithfulness" in columns else "compared"
    terminal.put(f"{len(result.frames)} frames {how}, {result.missing} without a counterpart")
    if change is not None:
        terminal.put(f"largest change where the truth's frames are equal: {change:.2f} of 255")


_COLUMNS = {
    "psnr": (" PSNR dB", 3), "ssim": ("    SSIM", 4), "gmsd": ("    GMSD", 4),
    "faithfulness": ("faithful dB", 3), "invented": (" invented", 3), "gradient_energy": ("  energy", 3),
    "warp_error": ("  E*warp", 3), "warp_error_bicubic": (" bicubic", 3), "warp_error_truth": ("   truth", 3),
    "flow_distance": ("     tOF", 3), "still_deviation": ("   still", 3),
}  # fmt: skip
"""Name of a figure -> the head of its column, as wide as that, and its digits."""


def _bench(arguments: argparse.Namespace) -> int:
    from vidup import paths  # with PyAV

    if arguments.input:
        paths.check_there(arguments.input)
    terminal.put(bench.report(arguments))
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from vidup.engines import devices, models
    from vidup.media.encoder import available

    table = {
        "engines": models(),
        "presets": {name: preset_line(Settings.preset(name)) for name in preset_names()},
        "encoders": available(),
        "devices": dict.fromkeys(devices(), ""),
    }
    if arguments.what is not None:
        table = {arguments.what: table[arguments.what]}
    if arguments.json:
        terminal.put(json.dumps(table))
        return 0
    for title, rows in table.items():
        terminal.put(title)
        for name, line in rows.items():
            terminal.put(f"  {name:12} {line}".rstrip())
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from vidup import doctor

    findings = doctor.examine()
    ready = all(one.state != "problem" for one in findings)
    table = {"ready": ready, "findings": [vars(one) for one in findings]}
    for line in [json.dumps(table)] if arguments.json else doctor.report(findings):
        terminal.put(line)
    return 0 if ready else 1


def _ui(arguments: argparse.Namespace) -> int:
    import webbrowser

    from vidup import ui

    def ready(address: str) -> None:
        terminal.say(f"vidup: the page is at {address} ; Ctrl-C ends it, runs go on")
        if arguments.host not in ("127.0.0.1", "localhost", "::1"):
            log.warning("who can reach this machine and has that address can use the page, and nothing is encrypted")
        if not arguments.no_browser:
            webbrowser.open(address)

    if not arguments.verbose:
        log.setLevel(logging.WARNING)  # what previews say is on the page
    with suppress(KeyboardInterrupt):  # the way to end it
        ui.serve(arguments.folders, arguments.host, arguments.port, ready)
    return 0


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "upscale": _upscale,
    "probe": _probe,
    "verify": _verify,
    "compare": _compare,
    "bench": _bench,
    "list": _list,
    "doctor": _doctor,
    "ui": _ui,
}


def _set_up_logging(verbose: bool, quiet: bool) -> None:
    handler = terminal.LogHandler()
    handler.setFormatter(logging.Formatter("vidup: %(message)s"))
    log.handlers = [handler]
    log.setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
    log.propagate = False


def _fail(error: Exception, verbose: bool, code: int) -> int:
    if verbose:
        log.error("%s", error, exc_info=error)
    else:
        terminal.say(f"vidup: {error}")
    return code

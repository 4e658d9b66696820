"""What can be typed: the parser of the command line, one function for each command."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import vidup
from vidup import bench
from vidup.config import DELIVERY, Runtime, Settings, preset_names
from vidup.options import add_options


class _Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line, where argparse would print all options first."""

    def error(self, message: str) -> NoReturn:
        known = [name for parser in (self, *self._commands()) for name in parser._option_string_actions]
        word = message.rpartition("unrecognized arguments: ")[2].split(" ")[0].split("=")[0]
        near = difflib.get_close_matches(word, known, 1, 0.75) if "unrecognized arguments: " in message else []
        hint = f"did you mean {near[0]}?" if near else f"{self.prog} --help lists the options"
        if any(argument.startswith("-") and Path(argument).exists() for argument in sys.argv[1:]):
            hint = "a file whose name begins with - is given as ./-NAME"
        self.exit(2, f"{self.prog}: {message}; {hint}\n")

    def _commands(self) -> Iterator[argparse.ArgumentParser]:
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                yield from action.choices.values()


def parser(commands: Mapping[str, Callable[[argparse.Namespace], int]]) -> argparse.ArgumentParser:
    """The parser of ``vidup``; the namespace that it gives has `command`, what runs it.

    Args:
        commands: what runs each command, by its name.
    """
    whole = _Parser(
        prog="vidup",
        description="Upscale video: every frame at its own time, the original sound untouched.",
        epilog="vidup COMMAND --help lists the options of a command.",
    )
    whole.add_argument("--version", action="version", version=f"vidup {vidup.__version__}")
    adding = whole.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, run in commands.items():
        command = _ADD[name](adding)
        command.add_argument("-v", "--verbose", action="store_true", help="log more, and show tracebacks")
        command.set_defaults(command=run)
    return whole


def _add_upscale(commands: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        "upscale",
        help="upscale videos or still images",
        description=(
            "Upscale videos or still images. Without -o the output stands beside the input, with _x4 in its name."
        ),
    )
    command.add_argument("inputs", nargs="+", metavar="INPUT", help="a file, or several with -o FOLDER")
    command.add_argument(
        "-o",
        "--output",
        metavar="PATH",
        help="the output file, or a folder for many inputs; the ending chooses the container: .mp4, .mov, .mkv, .webm",
    )
    command.add_argument("-p", "--preset", metavar="NAME", help=_presets())
    command.add_argument(
        "--progress",
        choices=("bar", "json", "none"),
        default="bar",
        help="a bar, or one JSON object a line on standard output (default: bar)",
    )
    add_options(command, Settings)
    add_options(command, Runtime)
    return command


def _add_probe(commands: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        "probe",
        help="show what is in a file, and what would become of it",
        description="Show what is in a file, and what would become of each stream with these settings.",
    )
    command.add_argument("input", metavar="INPUT")
    command.add_argument("-o", "--output", metavar="PATH", help="the output that is planned")
    command.add_argument("-p", "--preset", metavar="NAME", help=_presets())
    command.add_argument("--json", action="store_true", help="print one JSON object")
    add_options(command, Settings)
    add_options(command, Runtime, only=("device", "batch", "compile", "max_memory", "offload"))
    return command


def _add_verify(commands: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        "verify",
        help="prove that an upscaled file holds all that its source holds",
        description="Prove that an upscaled file, whoever made it, holds all that its source holds: every frame at its"
        " time and with its picture, every packet of sound, subtitles, chapters, tags. Prints a receipt.",
    )
    command.add_argument("source", metavar="SOURCE")
    command.add_argument("output", metavar="OUTPUT")
    command.add_argument("--fast", action="store_true", help="compare samples of the pictures instead of all")
    command.add_argument("--json", action="store_true", help="print the receipt, or the error, as one JSON object")
    add_options(command, Settings, only=DELIVERY)
    return command


def _add_compare(commands: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        "compare",
        help="measure a video against the truth",
        description="Measure a video against the truth, frame by frame: PSNR, SSIM, GMSD (lower is better), gradient"
        " energy (1 is the truth's); flicker: E*warp in squared codes of 255, along the truth's motion, beside that of"
        " bicubic (made from the truth, 4 times smaller) and of the truth itself (the flow's error), tOF in pixels, and"
        " the deviation over time, in codes, where the truth stands still; the change between equal frames.",
    )
    command.add_argument("truth", metavar="TRUTH")
    command.add_argument("other", metavar="OTHER")
    command.add_argument("--json", action="store_true", help="print one JSON object, with every frame")
    return command


def _add_list(commands: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        "list",
        help="list engines, presets, encoders and devices",
        description="List engines, presets, encoders and devices.",
    )
    command.add_argument("what", nargs="?", choices=("engines", "presets", "encoders", "devices"))
    command.add_argument("--json", action="store_true", help="print one JSON object")
    return command


def _presets() -> str:
    return f"{', '.join(preset_names())}, or the path of a .toml"


_ADD: dict[str, Callable[[Any], argparse.ArgumentParser]] = {
    "upscale": _add_upscale,
    "probe": _add_probe,
    "verify": _add_verify,
    "compare": _add_compare,
    "bench": bench.add_command,
    "list": _add_list,
}

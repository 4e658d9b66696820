"""The parser of the command line, one function for each command."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import vidup
from vidup import bench
from vidup.config import DELIVERY, Runtime, Settings
from vidup.options import add_options
from vidup.presets import preset_names

_OF_MEMORY = ("device", "batch", "compile", "max_memory", "offload")  # the fields of `Runtime` that decide memory


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line; argparse would print all options first."""

    typed: tuple[str, ...] = ()
    """The command line that is being parsed."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does; ``help COMMAND`` means ``COMMAND --help``, and nothing at all ``--help``."""
        given = tuple(sys.argv[1:] if args is None else args)
        commands = self._commands()
        if commands:
            _Parser.typed = given
            if given[:1] == ("help",) or not given:
                given = (*given[1:2], "--help")
        return super().parse_known_args(list(given), namespace)

    def error(self, message: str) -> NoReturn:
        """End the process with exit code 2 and a line: what is wrong, and what to do."""
        self.exit(2, f"{self.prog}: {message}; {self._hint(message)}\n")

    def _hint(self, message: str) -> str:
        unknown = message.rpartition("unrecognized arguments: ")[2] if "unrecognized arguments: " in message else ""
        word = unknown.split(" ")[0].split("=")[0]
        commands, typed = self._commands(), _Parser.typed
        if typed and "argument COMMAND" in message:
            return _meant(typed[1] if typed[0] == "help" and len(typed) > 1 else typed[0], commands)
        own = commands.get(typed[0] if typed else "", self)
        if word.startswith("-"):
            others = [name for name, command in commands.items() if word in command._option_string_actions]
            if others and word in typed[:1]:
                return f"options stand behind the command: vidup upscale ... {word}"
            if others:
                return f"that is an option of vidup {' and '.join(others)}"
            options = own._option_string_actions
            if near := difflib.get_close_matches(word, options, 1, 0.75):
                return f"did you mean {near[0]}?"
            if len(word) == 2 and (near := sorted(name for name in options if name.startswith(f"-{word}"))):
                return f"did you mean {' or '.join(near)}?"
        elif unknown and Path(unknown).exists():
            return f"{own.prog} takes no further file"
        if any(argument.startswith("-") and Path(argument).exists() for argument in typed):
            return "a file whose name begins with - is given as ./-NAME"
        return f"{own.prog} --help lists the options"

    def _commands(self) -> Mapping[str, argparse.ArgumentParser]:
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                return action.choices
        return {}


def _meant(word: str, commands: Iterable[str]) -> str:
    """A hint for a word that is no command."""
    if Path(word).exists():
        return f"did you mean vidup upscale {word}?"
    near = difflib.get_close_matches(word, [*commands, "--version"], 1)
    return f"did you mean vidup {near[0]}?" if near else "vidup --help lists the commands"


def parser(commands: Mapping[str, Callable[[argparse.Namespace], int]]) -> argparse.ArgumentParser:
    """The parser of ``vidup``, whose namespace has the function of its `command`."""
    whole = _Parser(
        prog="vidup",
        description="Upscale video: every frame at its own time, the original sound untouched.",
        epilog="vidup help COMMAND, or vidup COMMAND --help, lists the options of a command.",
    )
    whole.add_argument("--version", action="version", version=f"vidup {vidup.__version__}")
    adding = whole.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, run in commands.items():
        add, line, description = _COMMANDS[name]
        command = adding.add_parser(name, help=line, description=description)
        add(command)
        command.add_argument("-v", "--verbose", action="store_true", help="log more, and show tracebacks")
        command.set_defaults(command=run, quiet=False)
    adding.add_parser("help", help="show the options of a command: vidup help upscale")
    return whole


def _add_upscale(command: argparse.ArgumentParser) -> None:
    command.usage = "vidup upscale INPUT [INPUT ...] [-o OUTPUT] [options]"
    command.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="a file, or a folder; several of them with -o FOLDER; - is y4m from standard input, with -o -",
    )
    first = command.add_argument_group("options that matter first")
    first.add_argument(
        "-o",
        "--output",
        metavar="PATH",
        help="the output file, or a folder for many inputs; the ending chooses the container: .mp4, .mov, .mkv, .webm",
    )
    first.add_argument("-p", "--preset", metavar="NAME", help=_presets())
    add_options(command, Settings, Runtime, first=first)
    what = command.add_argument_group("messages")
    what.add_argument(
        "--progress",
        choices=("bar", "json", "none"),
        default="bar",
        help="a bar, or one JSON object a line on standard output (default: bar)",
    )
    what.add_argument("--dry-run", action="store_true", help="show what would be done, as probe does, and do nothing")
    what.add_argument("-q", "--quiet", action="store_true", help="no bar, and of the log warnings and errors alone")


def _add_probe(command: argparse.ArgumentParser) -> None:
    command.usage = "vidup probe INPUT [-o OUTPUT] [options]"
    command.add_argument("input", metavar="INPUT")
    command.add_argument("-o", "--output", metavar="PATH", help="the output that is planned")
    command.add_argument("-p", "--preset", metavar="NAME", help=_presets())
    command.add_argument("--json", action="store_true", help="print one JSON object")
    add_options(command, Settings, Runtime, only=[*(spec.name for spec in fields(Settings)), *_OF_MEMORY])


def _add_verify(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", metavar="SOURCE")
    command.add_argument("output", metavar="OUTPUT")
    command.add_argument("--fast", action="store_true", help="compare samples of the pictures instead of all")
    command.add_argument("--json", action="store_true", help="print the receipt, or the error, as one JSON object")
    add_options(command, Settings, only=DELIVERY)


def _add_compare(command: argparse.ArgumentParser) -> None:
    command.add_argument("truth", metavar="TRUTH", help="with -o also the input that the others were made of")
    command.add_argument("others", nargs="+", metavar="OTHER")
    command.add_argument(
        "-o", "--output", metavar="PAGE", help="write a page to look at as well: one .html file that needs no network"
    )
    command.add_argument("-y", "--overwrite", action="store_true", help="replace the page if it exists")
    command.add_argument("--json", action="store_true", help="print one JSON object, with every frame")


def _add_list(command: argparse.ArgumentParser) -> None:
    command.add_argument("what", nargs="?", choices=("engines", "presets", "encoders", "devices"))
    command.add_argument("--json", action="store_true", help="print one JSON object")


def _add_doctor(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print one JSON object")


def _add_ui(command: argparse.ArgumentParser) -> None:
    command.add_argument("folders", nargs="*", metavar="FOLDER", help="what the page may use (default: the current)")
    command.add_argument("--port", type=_port, default=7860, help="the next free one is taken (default: 7860)")
    command.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 lets others in the network in, with the token (default: 127.0.0.1)"
    )
    command.add_argument("--no-browser", action="store_true", help="print the address alone")


def _port(text: str) -> int:
    if text.isascii() and text.isdigit() and 0 <= int(text) < 65536:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no port: 0 to 65535 are")


def _presets() -> str:
    return f"{', '.join(preset_names())}, or the path of a .toml"


_COMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], str, str]] = {
    "upscale": (
        _add_upscale,
        "upscale videos or still images",
        "Upscale videos or still images. Without -o the output stands beside the input, with _x4 in its name.",
    ),
    "probe": (
        _add_probe,
        "show what is in a file, and what would become of it",
        "Show what is in a file, and what would become of each stream with these settings.",
    ),
    "verify": (
        _add_verify,
        "prove that an upscaled file holds all that its source holds",
        "Prove that an upscaled file, whoever made it, holds all that its source holds: every frame at its time and"
        " with its picture, every packet of sound, subtitles, chapters, tags. Prints a receipt.",
    ),
    "compare": (
        _add_compare,
        "measure videos against the truth, or show them beside their input",
        "Measure videos against the truth, frame by frame: PSNR, SSIM, GMSD (lower is better), gradient energy (1 is"
        " the truth's); flicker: E*warp in squared codes of 255, along the truth's motion, beside that of bicubic (made"
        " from the truth, 4 times smaller) and of the truth itself (the flow's error), tOF in pixels, and the deviation"
        " over time, in codes, where the truth stands still; the change between equal frames.",
    ),
    "bench": (
        bench.add_arguments,
        "measure this machine, or estimate how long a file takes",
        "Time every stage of a frame's way with these settings: seconds, memory, FLOP/s. With --input, on frames of"
        " that file, and estimate how long it takes as a whole, how much memory and how much disk.",
    ),
    "list": (
        _add_list,
        "list engines, presets, encoders and devices",
        "List engines, presets, encoders and devices.",
    ),
    "doctor": (
        _add_doctor,
        "check whether this machine is ready",
        "Look at what is installed and fits, at devices, encoders, models, disk. Nothing is changed or fetched. The"
        " exit code is 1 where there is a problem, 0 else.",
    ),
    "ui": (
        _add_ui,
        "open a page to choose, preview, compare and run",
        "Serve a page on this machine, and open it in the browser: choose a file, look at what a preset makes of it,"
        " run it, watch it. Runs outlive the page and its server. Nothing outside of the folders is read or written."
        ' Needs pip install "vidup[ui]".',
    ),
}
"""Name of a command -> what adds its options, its line in the help, and its description."""

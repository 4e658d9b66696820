"""Open an encoder in a process of its own, and read its messages about its options.

FFmpeg logs through a callback that takes Python's interpreter lock, in any thread. Where a thread that holds the lock
waits for a decoder's threads, and one of those logs, both wait for ever: so the callback is set only where nothing is
decoded. And an encoder that hangs or crashes over an option ends only that process.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from fractions import Fraction
from functools import cache
from typing import Any

import av
import av.logging

_PATIENCE = 60  # seconds
# In warnings after which an encoder opens, and ignores the option.
_IGNORED = re.compile(r"error parsing|unknown option|invalid value|unable to parse|ignored", re.IGNORECASE)


@cache
def objections(codec: str, options: tuple[tuple[str, str], ...], width: int, height: int, pix_fmt: str) -> list[str]:
    """An encoder's objections to its options, a line each: why it does not open, or which of them it would ignore."""
    given = json.dumps([codec, dict(options), width, height, pix_fmt])
    command = [sys.executable, "-P", __file__]
    try:
        done = subprocess.run(command, input=given, capture_output=True, text=True, errors="replace", timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        return [f"it does not open within {_PATIENCE} s"]
    lines = done.stderr.splitlines()  # x265 and SVT-AV1 write there, not to FFmpeg's log
    if done.returncode:
        return [f"it ends the process that opens it (exit code {done.returncode}) {' '.join(lines[-1:])}".strip()]
    answer = json.loads(done.stdout.splitlines()[-1])
    own = [line for line in lines if "[error]" in line or ("[warning]" in line and _IGNORED.search(line))]
    logged = [text.strip() for level, text in answer["log"] if level <= av.logging.ERROR or _IGNORED.search(text)]
    if not answer["opened"]:
        return own + logged or ["it gives no reason"]
    return [line for line in own + logged if _IGNORED.search(line)]


def _main() -> None:
    codec, options, width, height, pix_fmt = json.load(sys.stdin)
    if codec == "libx265":  # its default parameters switch warnings off
        options["x265-params"] = ":".join(filter(None, [options.get("x265-params"), "log-level=warning"]))
    av.logging.set_level(av.logging.WARNING)
    av.logging.set_skip_repeated(False)
    context: Any = av.CodecContext.create(codec, "w")
    context.width, context.height, context.pix_fmt = width, height, pix_fmt
    context.time_base, context.framerate = Fraction(1, 25), Fraction(25)
    context.options = options
    opened = True
    with av.logging.Capture(local=False) as log:
        try:
            context.open()
        except (av.error.FFmpegError, ValueError):
            opened = False
    sys.stdout.write("\n" + json.dumps({"opened": opened, "log": [(level, text) for level, _, text in log]}))


if __name__ == "__main__":
    _main()

"""Open a media file safely, and read its packets."""

from __future__ import annotations

import logging
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import av

from vidup.errors import MediaError
from vidup.media import animation_input, vp9_alpha
from vidup.media.frames import EXR_OPTIONS
from vidup.media.origins import Origin, on_one_clock
from vidup.media.origins import find as find_clocks
from vidup.media.sequences import find, is_sequence

log = logging.getLogger(__name__)

MOST_PIXELS = 2**27
"""The most pixels of a frame; a file that claims more is refused before memory is allocated for it."""

# Demuxers that open other files or devices than the one that was named.
_INDIRECT = {
    *("concat", "dash", "ffmetadata", "hls", "image2", "imf", "lavfi", "rtp", "rtsp", "sap", "sdp", "tty", "vobsub"),
    "webm_dash_manifest",
}
_MOST_FAILURES = 1000  # of a demuxer, one after another, that are tolerated
UNREADABLE = (av.error.FFmpegError, ArithmeticError, LookupError, MemoryError, ValueError)
"""What PyAV raises for the content of a file."""

# Containers that do not list their streams at the head, and the options with which FFmpeg searches all of such a file
# for streams. These demuxers then go back to the head, so what was read need not be buffered.
_UNLISTED = {"mpegts", "mpeg"}
_SEARCHING = {"probesize": str(2**40), "analyzeduration": str(2**50), "scan_all_pmts": "1"}


@contextmanager
def open_input(path: str | Path, demuxing: dict[str, str] | None = None, whole: bool = False) -> Iterator[Any]:
    """Open a media file as a PyAV container.

    Args:
        demuxing: options of the demuxer.
        whole: where the container does not list its streams at the head, read the file once to find those that begin
            late.

    Raises:
        MediaError: the file is missing, is no regular file, is empty, or is no media file.
    """
    check_file(path)
    container = _open(path, demuxing or {}, "-genpts")
    if whole and container.format.name in _UNLISTED:
        container.close()
        container = _open(path, _SEARCHING | (demuxing or {}), "-genpts+nobuffer")
    with container:
        yield container


def _open(path: str | Path, demuxing: dict[str, str], flags: str) -> Any:
    kind, formats = None, av.formats_available - _INDIRECT
    source: Any = f"file:{path}"  # a colon in the name would be taken for a protocol otherwise
    if is_sequence(path):
        numbered = find(Path(path))
        source, kind, formats = f"file:{numbered.for_ffmpeg}", "image2", {"image2"}
        demuxing = {"pattern_type": "sequence", "start_number": str(numbered.first), **demuxing}
    else:
        kind, source = _still_format(Path(path)), animation_input.for_ffmpeg(Path(path), MOST_PIXELS) or source
    try:
        return av.open(
            source,
            format=kind,
            metadata_errors="surrogateescape",
            # PyAV has the demuxer invent missing times, which are wrong for h264 in AVI.
            container_options={"fflags": flags},
            options={
                "format_whitelist": ",".join(sorted(formats)),
                "protocol_whitelist": "file",
                "max_pixels": str(MOST_PIXELS),
                **demuxing,
            },
        )
    except av.error.InvalidDataError:
        raise MediaError(f"{path}: is no video, or is damaged at its head (no known format was found in it)") from None
    except av.error.ArgumentError:  # mostly: a format that is not on the list
        raise MediaError(
            f"{path}: is damaged, or is a list of other files, which is not followed: give vidup the video itself"
        ) from None
    except (OSError, *UNREADABLE) as error:
        raise MediaError(f"{path}: cannot be read: {reason(error)}") from None


def _still_format(path: Path) -> str | None:
    """The demuxer for a still image whose name would make ffmpeg look for a sequence of files; None for other files."""
    with path.open("rb") as file:
        head = file.read(3)
    return "jpeg_pipe" if head == b"\xff\xd8\xff" and path.suffix.lower() in (".jpg", ".jpeg") else None


def check_file(path: str | Path) -> None:
    """Raise a MediaError unless a path names a regular file with content: opening a pipe would wait for a writer."""
    if is_sequence(path):
        find(Path(path))
        return
    try:
        facts = Path(path).stat()
    except FileNotFoundError:
        raise MediaError(f"{path}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise MediaError(f"{path}: cannot be read: {reason(error)}") from None
    if stat.S_ISDIR(facts.st_mode):
        raise MediaError(f"{path}: is a folder, expected a file")
    if not stat.S_ISREG(facts.st_mode):
        raise MediaError(f"{path}: is a pipe or a device; vidup reads its input more than once: save it to a file")
    if facts.st_size == 0:
        raise MediaError(f"{path}: is empty")


_SMALL = 2**17  # pixels


def is_small(width: int, height: int) -> bool:
    """Whether passing a frame to another thread costs more than it saves."""
    return width * height <= _SMALL


def set_threads(context: Any, exact: bool = False) -> None:
    """Let a decoder that is not open yet use threads; `exact`: only within a frame: an error affects no other."""
    if is_small(context.width, context.height):
        context.thread_type, context.thread_count = "SLICE", 1
    else:
        context.thread_type = "SLICE" if exact else "AUTO"


def video_context(stream: Any, **options: str) -> Any:
    """The stream's decoder with a limit of a frame's pixels, and more options where it is not open yet."""
    context = stream.codec_context
    if decoder := vp9_alpha.decoder_for(stream):
        context = av.CodecContext.create(decoder, "r")
        context.extradata = stream.codec_context.extradata
    if not context.is_open:
        own = EXR_OPTIONS if context.name == "exr" else {}
        context.options = {**context.options, "max_pixels": str(MOST_PIXELS), **own, **options}
    return context


class Channels(NamedTuple):
    """The channels of an audio stream."""

    layout: str
    """ffmpeg's name of the layout of its decoder's frames."""
    number: int
    order: tuple[int, ...] | None = None
    """The place in the frames of each channel of `layout`, where the file has another order, as cinema files have."""


def channels(context: Any) -> Channels:
    """Read the channels of a decoder that is not yet open. No other code may read a decoder's layout.

    Where the file has an order of its own, each layout that PyAV returns frees the list of channels, which the decoder
    and each of its frames free again. So the decoder gets a layout without such a list here.
    """
    layout = context.layout
    if "(" not in layout.name:
        return Channels(layout.name, layout.nb_channels)
    names = [channel.name for channel in layout.channels]
    usual = [channel.name for channel in av.AudioLayout("22.2").channels]
    if len(set(names)) < len(names) or not set(names) <= set(usual):
        context.layout = f"{len(names)} channels"
        return Channels(f"{len(names)} channels", len(names))
    names_in_order = sorted(names, key=usual.index)
    context.layout = "+".join(names_in_order)
    order = tuple(names.index(name) for name in names_in_order)
    differs = names != names_in_order and context.name.startswith("pcm_")  # other codecs have their own order
    return Channels(context.layout.name, len(names), order if differs else None)


def tolerant_demux(container: Any, stream: Any, damaged: Callable[[str], None]) -> Iterator[Any]:
    """The packets of a stream, or of all; an error is passed to `damaged`, and if that returns, reading continues.

    Where the file's clock restarts, the times continue those before.
    """
    packets = _demux(container, stream, damaged)
    found = find_origins(container)
    return on_one_clock(packets, found) if found else packets


def find_origins(container: Any) -> tuple[Origin, ...]:
    """Where the clock of an open file restarts. The file is read, unless its format has no restarts."""
    if not container.format.flags & av.format.Flags.ts_discont.value:
        return ()
    path = Path(container.name.removeprefix("file:"))
    facts = path.stat()
    return _scan(path, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=64)
def _scan(path: Path, size: int, mtime_ns: int) -> tuple[Origin, ...]:
    with open_input(path) as container:
        return find_clocks(_demux(container, None, log.debug))


def _demux(container: Any, stream: Any, damaged: Callable[[str], None]) -> Iterator[Any]:
    failures, dts, read = 0, 0, None
    while True:
        try:
            for packet in container.demux(*([stream] if stream is not None else [])):
                if packet.dts is not None:
                    failures, dts, read = 0, packet.dts, packet.stream
                yield packet
            return
        except IndexError:  # at the end PyAV flushes streams that appeared late, which it does not know
            return
        except UNREADABLE as error:
            last = clock(dts, read.time_base if read is not None else Fraction(0))
            damaged(f"is damaged after {last}: {reason(error)}")
            failures += 1
            if not isinstance(error, av.error.FFmpegError) or isinstance(error, EOFError) or failures > _MOST_FAILURES:
                return


def codec_name(stream: Any) -> str:
    return cast(str, stream.codec_context.name) if stream.codec_context is not None else "of unknown codec"


def reason(error: Exception) -> str:
    """An error's message in one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())


def clock(time: int | None, time_base: Fraction) -> str:
    """A time as text, in seconds."""
    return "an unknown time" if time is None else f"{float(time * time_base):.3f} s"

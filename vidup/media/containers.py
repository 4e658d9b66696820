"""The output containers (mp4, mov, mkv, webm; animations): a record for each, with all that is known of it."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av

from vidup.errors import ConfigError
from vidup.media import animation_input, sequences
from vidup.media.sequences import is_sequence

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Container:
    """An output format, and what it can store."""

    name: str
    """The name of ffmpeg's muxer."""
    endings: tuple[str, ...]
    """The endings of a file's name, the usual one first."""
    family: Literal["mov", "matroska", "pictures"]
    """``pictures``: a file for each frame, or an animation, and nothing else."""
    tick: Fraction | None
    """Seconds in one unit of all times; None where each stream has its own time base."""
    codec: str
    """The default video encoder."""
    deep_codec: str
    """The default for pictures of more than 8 bits: few players outside of computers play H.264 of 10 bits."""
    below_zero: Literal["hidden", "shifted"] = "hidden"
    """What happens to times below zero: players hide such pictures, or the muxer shifts all streams."""
    text: str = ""
    """The encoder for subtitles whose format it cannot store."""
    sound: str = ""
    """The encoder for audio whose format it cannot store."""
    lossless_sound: str = ""
    """The same, for audio that was compressed without loss, or not at all."""
    cover: Literal["stream", "attachment"] | None = None
    """How a cover picture is stored; None where it cannot be."""
    data: bool = False
    """Whether it can store attachments, such as fonts, and data streams."""
    keeps_aspect: bool = False
    """Whether it stores a pixel aspect ratio that players obey; else only that of some codecs is kept."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Options of its muxer; those of the user replace them."""
    languages: Mapping[str, str] = field(default_factory=dict)
    """Codes of ISO 639-2 that its muxer does not know -> the code of the same language that it knows."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Beginnings of the names of codecs that its muxer takes and players do not -> why."""

    def __str__(self) -> str:
        return self.name

    @property
    def is_animated(self) -> bool:
        """Whether it is an animation: pictures in one file, at their times."""
        return self.family == "pictures" and self.tick is not None

    def holds(self, codec: str) -> bool:
        """Whether its muxer takes the video of an encoder, found by a dry run."""
        if self.family == "pictures":
            return codec == self.codec
        try:
            av.open(io.BytesIO(), "w", format=self.name).add_stream(codec)
        except ValueError:
            return False
        return True

    def with_options(self, given: Mapping[str, str]) -> Container:
        """The container with more options for its muxer; ``+flag`` and ``-flag`` are added to ours.

        Raises:
            ConfigError: the muxer does not know an option, or refuses its value.
        """
        if not given:
            return self
        if self.family == "pictures":
            raise ConfigError(f"muxer_options = {dict(given)}: {self} have no muxer; leave it out")
        self._check_muxer_options(given)
        options = dict(self.options)
        for key, value in given.items():
            options[key] = options.get(key, "") + value if value.startswith(("+", "-")) else value
        return replace(self, options=options)

    def _check_muxer_options(self, given: Mapping[str, str]) -> None:
        """Check options by a dry run of the muxer."""
        unused: list[str] = []

        def watch(record: logging.LogRecord) -> bool:
            unused.append(record.getMessage())
            return False

        logger = logging.getLogger("av.container.output")  # where PyAV logs the options that nobody used
        logger.addFilter(watch)
        try:
            with suppress(OSError), io.BytesIO() as nowhere:
                target = av.open(nowhere, "w", format=self.name, options=dict(given))
                context = target.add_stream(self.codec, rate=25).codec_context
                context.width, context.height, context.pix_fmt = 256, 256, "yuv420p"
                context.open()  # else the options would be offered to the encoder, too
                try:
                    target.start_encoding()
                except av.error.FFmpegError as error:
                    raise ConfigError(f"muxer_options = {dict(given)}: {self} refuses: {error.strerror}") from None
                # It is not closed: the end of a fragmented mp4 that holds no packet crashes FFmpeg.
        finally:
            logger.removeFilter(watch)
        if unused:
            raise ConfigError(f"muxer_options = {dict(given)}: {self} does not know all of them: {unused[0]}")

    def refusal(self, stream: Any) -> str | None:
        """Why a stream of an open input cannot be copied into it, found by a dry run; None where it can."""
        if self.family == "pictures":
            return "pictures hold nothing else"
        if is_cover(stream):
            if self.cover is None:
                return f"{self} has no place for a cover"
            if self.cover == "attachment":
                return "a cover is no video track"
        if not self.data and stream.type in ("data", "attachment"):
            return f"{self} has no place for it"
        codec = stream.codec_context.name if stream.codec_context is not None else None
        if codec is None and stream.type != "attachment":
            return "its codec is not known"
        for beginning, why in self.refused.items():
            if codec is not None and codec.startswith(beginning):
                return why
        with suppress(OSError):  # closing without packets may fail
            target = av.open(io.BytesIO(), "w", format=self.name)
            try:
                target.add_stream_from_template(stream, opaque=True)
                target.start_encoding()
            except (av.error.FFmpegError, ValueError) as error:
                log.debug("stream %d: %s", stream.index, error)
                return f"{self} does not take {codec or 'it'}"
            target.close()
        return None

    def tag_options(self, tags: Mapping[str, str]) -> dict[str, str]:
        """The muxer's options for a file with these tags; those of Apple's cameras need one more."""
        options = dict(self.options)
        if self.family == "mov" and any(key.startswith("com.") for key in tags):
            options["movflags"] = options.get("movflags", "") + "+use_metadata_tags"
        return options

    def arriving(self, tags: Mapping[str, str]) -> dict[str, str]:
        """The tags of a file that it can store, found by a dry run: mov and mp4 store only some."""
        if self.family != "mov":
            return {} if self.family == "pictures" else dict(tags)
        every = "use_metadata_tags" in self.tag_options(tags).get("movflags", "")
        with io.BytesIO() as file:
            options = {"fflags": "+bitexact"} | ({"movflags": "use_metadata_tags"} if every else {})
            kind: dict[str, Any] = {"format": self.name, "metadata_errors": "surrogateescape"}
            with av.open(file, "w", container_options=options, **kind) as target:
                stream = target.add_stream("mpeg4", rate=25)
                stream.codec_context.width = stream.codec_context.height = 16
                target.metadata.update(tags)
                target.start_encoding()
                packet = av.Packet(b"\0")
                packet.stream, packet.pts, packet.dts, packet.time_base = stream, 0, 0, Fraction(1, 25)
                target.mux(packet)
            file.seek(0)
            with av.open(file, metadata_errors="surrogateescape") as written:
                return dict(written.metadata)

    def shows_aspect(self, codec: str) -> bool:
        """Whether the pixel aspect ratio is kept: by the container, or in the encoded pictures of some codecs."""
        return self.keeps_aspect or video_format(codec) in ("h264", "hevc")


OWN_TAGS = (
    *("major_brand", "minor_version", "compatible_brands", "encoder", "duration", "creation_time", "vendor_id"),
    *("handler_name", "bps", "number_of_", "_statistics_", "source_id", "filename", "mimetype", "timecode"),
)
"""Beginnings of the names of tags that muxers write themselves, or that describe the input's encoding."""


def is_cover(stream: Any) -> bool:
    """Whether a stream is the file's cover picture."""
    return bool(stream.type == "video" and stream.disposition & av.stream.Disposition.attached_pic)


def video_format(codec: str) -> str:
    """The format that an encoder writes or a decoder reads, such as ``hevc`` for ``libx265``."""
    for mode in ("w", "r"):
        with suppress(ValueError):
            return str(av.Codec(codec, mode).canonical_name)
    return codec


_MILLISECOND = Fraction(1, 1000)

# The muxer of mov knows the languages of a list of the old Mac OS, each by one code.
_MAC_LANGUAGES = {
    **{"sqi": "alb", "hye": "arm", "eus": "baq", "mya": "bur", "zho": "chi", "cze": "ces", "nld": "dut", "fre": "fra"},
    **{"kat": "geo", "deu": "ger", "ell": "gre", "isl": "ice", "mkd": "mac", "msa": "may", "fas": "per", "rum": "ron"},
    **{"slo": "slk", "bod": "tib", "cym": "wel", "swe": "sve"},
}

MP4 = Container(
    name="mp4",
    endings=(".mp4", ".m4v"),
    family="mov",
    tick=None,
    codec="libx264",
    deep_codec="libx265",
    text="mov_text",
    sound="aac",
    lossless_sound="alac",
    cover="stream",
    keeps_aspect=True,
    # No version or random ids: the same job writes the same bytes. The index comes before the pictures, so that a
    # player on a web page can begin.
    options={"fflags": "+bitexact", "movflags": "+faststart"},
    refused={"pcm_": "few players read PCM in mp4"},
)
MOV = replace(MP4, name="mov", endings=(".mov",), cover=None, languages=_MAC_LANGUAGES, refused={})
MATROSKA = Container(
    name="matroska",
    endings=(".mkv",),
    family="matroska",
    tick=_MILLISECOND,
    codec="libx264",
    deep_codec="libx264",
    below_zero="shifted",
    text="subrip",
    sound="flac",
    lossless_sound="flac",
    cover="attachment",
    data=True,
    options={"fflags": "+bitexact"},
)
WEBM = replace(
    MATROSKA,
    name="webm",
    endings=(".webm",),
    codec="libvpx-vp9",
    deep_codec="libvpx-vp9",
    text="webvtt",
    sound="libopus",
    lossless_sound="libopus",
    cover=None,
    data=False,
)

CONTAINERS = {ending: container for container in (MP4, MOV, MATROSKA, WEBM) for ending in container.endings}
"""The containers, by the ending of the output's name."""

STILLS = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"}
"""Endings of the still images that go in and out."""

STILLS_READ = {".gif", ".avif"}
"""Endings of still images that are only read."""

ANIMATIONS = {".gif", ".apng"}
"""Endings of animated pictures; some of the formats of still images may be animated, too."""

_ANIMATED = {
    **{".gif": ("GIF", 10 * _MILLISECOND), ".webp": ("WebP", _MILLISECOND)},
    **dict.fromkeys((".png", ".apng"), ("APNG", _MILLISECOND)),
}
"""Ending of an animation that can be written -> its container's name, and its unit of times."""

WRITTEN = CONTAINERS.keys() | _ANIMATED.keys()
"""Endings of the files that videos can be written to."""


def is_picture(source: Path, output: Path) -> bool:
    """Whether input and output are still images, by their names and the input's content."""
    if is_sequence(source) or is_sequence(output) or animation_input.is_animation(source):
        return False
    read, written = STILLS | STILLS_READ | ANIMATIONS, STILLS | ANIMATIONS
    return source.suffix.lower() in read and output.suffix.lower() in written


def check_ending(source: Path, output: Path) -> None:
    """Check the output's ending: a ConfigError if it cannot be written, or holds one picture and the source several."""
    if is_picture(source, output):
        return
    ending = output.suffix.lower()
    # A .png that is made from a video holds one picture.
    is_moving = ending == ".webp" or (ending in _ANIMATED and animation_input.is_animation(source))
    if ending in STILLS and not is_sequence(output) and not is_moving:
        raise ConfigError(
            f"{output}: holds one picture, and {source} has several; take .mp4, .mkv, .gif, .apng or .webp, or"
            f" {output.stem}_%05d{ending if ending in sequences.WRITTEN else '.png'} for a file of each picture"
        )
    container_of(output)


def container_of(output: Path) -> Container:
    """The container of a file with this name, by its ending; a ConfigError where that is not known."""
    ending = output.suffix.lower()
    if is_sequence(output):
        codec = sequences.WRITTEN.get(ending)
        if codec is None:
            raise ConfigError(f"{output}: cannot write such pictures; take {', '.join(sequences.WRITTEN)}")
        return Container("pictures", (output.suffix,), "pictures", None, codec, codec)
    if ending in _ANIMATED:
        name, tick = _ANIMATED[ending]
        return Container(name, (ending,), "pictures", tick, "png", "png")
    container = CONTAINERS.get(ending)
    if container is None:
        raise ConfigError(
            f"{output}: cannot write {output.suffix or 'a file without an ending'};"
            f" choose a name that ends in {', '.join([*CONTAINERS, *sorted(ANIMATIONS), '.webp'])}"
        )
    return container


def family(formats: str) -> str:
    """The family of a demuxer, such as ``mov,mp4,m4a,3gp,3g2,mj2``: ``mov``, ``matroska``, or else its own name."""
    names = set(formats.split(","))
    return next((container.family for container in CONTAINERS.values() if container.name in names), formats)

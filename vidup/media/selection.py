"""Which streams of the input are kept beside the video, by ffmpeg's stream specifiers."""

from __future__ import annotations

import re
from typing import Any

from vidup.config import Settings
from vidup.errors import ConfigError

_KINDS = {"v": "video", "a": "audio", "s": "subtitle", "d": "data", "t": "attachment"}
_SPECIFIER = re.compile(
    r"(?P<index>\d{1,9})|(?P<kind>[vasdt])(?::(?P<place>\d{1,9}))?"
    r"|(?:(?P<of>[vasdt]):)?m:(?P<key>[^:]+)(?::(?P<value>.+))?"
)


def left_out(source: Any, video_index: int, settings: Settings) -> set[int]:
    """The indexes of the streams of an open input that the settings leave out.

    Args:
        video_index: the index of the upscaled stream, which is always kept.

    Raises:
        ConfigError: a specifier cannot be parsed, matches no stream, or would leave out the upscaled stream alone.
    """
    found = set()
    if settings.streams is not None:
        kept = _chosen(source, "streams", settings.streams)
        found = {stream.index for stream in source.streams} - kept
    if settings.drop_streams is not None:
        dropped = _chosen(source, "drop_streams", settings.drop_streams)
        if dropped == {video_index}:
            raise ConfigError(f"drop_streams = {settings.drop_streams!r}: is the video that is upscaled; keep it")
        found |= dropped
    if settings.no_audio:
        found |= {stream.index for stream in source.streams if stream.type == "audio"}
    if settings.no_subtitles:
        found |= {stream.index for stream in source.streams if stream.type == "subtitle"}
    return found - {video_index}


def _chosen(source: Any, name: str, specifiers: str) -> set[int]:
    chosen = set()
    for specifier in filter(None, (part.strip() for part in specifiers.split(","))):
        match = _SPECIFIER.fullmatch(specifier)
        if match is None:
            raise ConfigError(
                f"{name} = {specifiers!r}: {specifier!r} is no stream specifier; expected such as a, a:0, 3 or"
                " s:m:language:eng"
            )
        found = _matching(source, match)
        if not found:
            there = ", ".join(f"{stream.index} {stream.type}" for stream in source.streams)
            raise ConfigError(f"{name} = {specifiers!r}: {specifier!r} fits no stream; there are {there}")
        chosen |= found
    return chosen


def _matching(source: Any, match: re.Match[str]) -> set[int]:
    """The indexes of the streams that a specifier selects."""
    streams = list(source.streams)
    if match["index"]:
        streams = [stream for stream in streams if stream.index == int(match["index"])]
    if kind := match["kind"] or match["of"]:
        streams = [stream for stream in streams if stream.type == _KINDS[kind]]
    if match["place"]:
        streams = streams[int(match["place"]) :][:1]
    if match["key"]:
        streams = [
            stream
            for stream in streams
            if match["key"] in stream.metadata and match["value"] in (None, stream.metadata[match["key"]])
        ]
    return {stream.index for stream in streams}

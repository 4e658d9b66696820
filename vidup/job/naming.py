"""Default names of outputs."""

from __future__ import annotations

from pathlib import Path

from vidup import engines
from vidup.config import Settings
from vidup.media import containers
from vidup.media.animation_input import is_animation
from vidup.media.sequences import WRITTEN, is_sequence


def default_output(source: Path, settings: Settings) -> Path:
    """The default path of an output: beside the input, with its ending where possible, and the scale in the name."""
    if settings.width and settings.height:
        mark = f"_{settings.width}x{settings.height}"
    elif settings.width or settings.height:
        mark = f"_{settings.width}w" if settings.width else f"_{settings.height}p"
    else:
        mark = f"_x{settings.scale or engines.native_scale(settings):g}"
    ending = source.suffix.lower()
    if is_sequence(source):  # in a folder beside the input's, with the same numbers
        folder = source.parent.resolve()
        return folder.with_name(folder.name + mark) / (source.name if ending in WRITTEN else f"{source.stem}.png")
    if ending == ".gif" and not is_animation(source):
        ending = ".png"
    kept = ending in {*containers.CONTAINERS, *containers.STILLS, *containers.ANIMATIONS}
    return source.with_name(source.stem + mark + (ending if kept else containers.MATROSKA.endings[0]))

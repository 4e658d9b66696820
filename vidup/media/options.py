"""The options of an encoder: its defaults, its rate control, and the user's options, which replace both."""

from __future__ import annotations

import re
from collections.abc import Mapping

from vidup.config import Settings
from vidup.errors import ConfigError
from vidup.frame import HdrMetadata
from vidup.media.codecs import DEFAULTS, Defaults
from vidup.media.hdr import hdr_params
from vidup.media.side_data import FRAME_PACKING

_MASTERING = re.compile(r"G\(P\)B\(P\)R\(P\)WP\(P\)L\(P\)".replace("P", r"[\d.]+,[\d.]+"))
_LISTED_RATE = re.compile(r"(?:^|:)(crf|qp|bitrate|rc|tbr|lossless)=")
"""Rate control in an encoder's list of parameters, which overrides all other options."""


def encoder_options(codec: str, settings: Settings, hdr: HdrMetadata | None, stereo_mode: str = "") -> dict[str, str]:
    """An encoder's options: our defaults, rate control, the user's; a ConfigError if they clash, or one is ignored."""
    defaults = DEFAULTS.get(codec, Defaults(None))
    given = settings.encoder_options
    _check_mastering(given)
    options, own = dict(defaults.options), _own_rate_control(codec, given)
    listed = {name: match[1] for name, text in given.items() if (match := _LISTED_RATE.search(text))}
    for name, value in (("crf", settings.crf), ("bitrate", settings.bitrate)):
        if value is not None and (own or listed):
            other = f"{own[0]}={given[own[0]]}" if own else f"{next(iter(listed.values()))} in {next(iter(listed))}"
            raise ConfigError(f"{name} = {value} and encoder option {other}: give one of the two")
    if own and defaults.quality not in own:
        options = {key: value for key, value in options.items() if key not in defaults.rates}
    else:
        options |= _rate_options(codec, settings.crf, settings.bits_a_second)
    options |= given
    if defaults.params is not None:
        name, ours = defaults.params
        of_hdr = hdr_params(codec, hdr) if hdr is not None else None
        packing = FRAME_PACKING.get(stereo_mode) if codec == "libx264" else None
        views = f"frame-packing={packing}" if packing is not None else ""
        if entries := ":".join(filter(None, (ours, *(of_hdr or []), views, given.get(name)))):
            options[name] = entries
    return options


def _check_mastering(options: Mapping[str, str]) -> None:
    """Check the syntax of a mastering display: SVT-AV1 may hang where it is wrong, and x265 silently ignores it."""
    for name, parameters in options.items():
        for key, value in re.findall(r"(?:^|:)(master(?:ing)?[-_]display)=((?:\\.|[^:\\])*)", parameters):
            if _MASTERING.fullmatch(value.replace("\\", "").strip("'")) is None and value != "undef":
                raise ConfigError(f"{name}: {key}={value}: expected G(x,y)B(x,y)R(x,y)WP(x,y)L(max,min)")


def _rate_options(codec: str, crf: float | None, bitrate: int | None) -> dict[str, str]:
    """The options of an encoder's rate control: constant quality, average bitrate, or quality with a highest bitrate.

    Args:
        crf: None: the encoder's default, or none where there is a bitrate.
        bitrate: bits a second.
    """
    defaults = DEFAULTS.get(codec, Defaults(None))
    if crf is not None and defaults.crf is None and codec in DEFAULTS:
        raise ConfigError(f"crf = {crf:g}: {codec} has no constant quality; leave it out")
    if bitrate is not None and "b" not in defaults.rates:
        raise ConfigError(f"bitrate = {bitrate}: {codec} has no target bitrate; leave it out")
    if bitrate is not None and crf is None:
        return {"b": str(bitrate)}
    crf = defaults.crf if crf is None else crf
    if crf is None:
        return {}
    low, high = defaults.crf_range
    if not low <= crf <= high:
        raise ConfigError(f"crf = {crf:g}: {codec} takes {low:g} to {high:g}")
    cap = dict(zip(defaults.cap, (str(bitrate), str(2 * bitrate)), strict=False)) if bitrate is not None else {}
    return {defaults.quality: f"{crf:g}", **cap}


def _own_rate_control(codec: str, options: Mapping[str, str]) -> list[str]:
    """The user's options that choose an encoder's rate control; an error where the encoder would ignore one."""
    defaults = DEFAULTS.get(codec)
    if defaults is None:
        return []
    for name in defaults.ignored:
        if name in options:
            raise ConfigError(f"encoder option {name}: {codec} ignores it; leave it out")
    names = (*defaults.rates, defaults.quality)
    return [name for name, value in options.items() if name in names and value != defaults.options.get(name)]

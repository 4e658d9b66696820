"""Writes animations, GIF, APNG and WebP, from proved segments, with Pillow; all pictures are in memory.

FFmpeg writes them too, but loses transparency, and counts loops differently in each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from io import BytesIO
from itertools import pairwise, product
from pathlib import Path
from typing import Any

from PIL import Image

from vidup.errors import ConfigError, MediaError
from vidup.media import animation_input, decoding
from vidup.media.delivery import Delivery
from vidup.media.encoder import Encoding
from vidup.media.opening import reason
from vidup.media.segment import read_segment

_MOST_BYTES = 4 << 30  # of all pictures
_LONGEST = {"GIF": 655_350, "APNG": 65_535, "WebP": 2**24 - 1}  # duration of a picture in milliseconds
_PALETTE = 255  # colours; the 256th is transparent
_SAMPLED = 256  # pixels a side of the reduced picture that a palette is computed from


def check(delivery: Delivery, encoding: Encoding) -> None:
    """Check that the container can hold the animation: a ConfigError where its pictures are too large, many or long."""
    kind, size = delivery.container.name, f"{encoding.width}x{encoding.height}"
    largest = 16_383 if kind == "WebP" else 65_535
    if max(encoding.width, encoding.height) > largest:
        raise ConfigError(f"{kind} holds {largest} pixels a side, not {size}: take .mp4 or .mkv")
    if len(delivery.times) * encoding.width * encoding.height * 4 > _MOST_BYTES:
        raise ConfigError(f"{len(delivery.times)} pictures of {size} are too many for {kind}: take .mp4 or .mkv")
    longest = max(durations(delivery, delivery.times))
    if longest > _LONGEST[kind]:
        raise ConfigError(f"{kind} cannot show a picture for {longest / 1000:g} s: take .mp4 or .mkv")


def notes(delivery: Delivery) -> Iterator[str]:
    """Sentences for the user on what the container loses."""
    kind = delivery.container.name
    if kind == "GIF":
        yield "GIF has 256 colours a picture and full transparency or none; .apng and .webp hold all"
        if min(durations(delivery, delivery.times)) < 20:
            yield "what a GIF shows for less than 0.02 s many players show for 0.1 s; take .apng or .webp"
    if kind == "WebP":
        yield "the pictures of an animated WebP are compressed, with quality 90; .apng holds them without loss"
    if delivery.info.color.transfer in (16, 18):
        yield f"{kind} cannot say that its light is HDR: players show it too dark and gray"


def durations(delivery: Delivery, times: Sequence[int]) -> list[int]:
    """Milliseconds for which pictures with these times, in `delivery.unit`, are shown: roundings do not add up."""
    _, lengths = decoding.schedule(delivery.info, delivery.settings, *delivery.span)
    tick = delivery.container.tick or Fraction(1)
    ends = [*times, times[-1] + lengths[times[-1] + delivery.offset]]
    rounded = [int(time * delivery.unit / tick + Fraction(1, 2)) * int(1000 * tick) for time in ends]
    return [after - before for before, after in pairwise(rounded)]


def join(output: Path, delivery: Delivery, encoding: Encoding, segments: Sequence[Path]) -> list[int]:
    """Write the pictures of segments as one animation; arguments and result are those of `joining.join`."""
    kind, order = delivery.container.name, sorted(packet.pts for path in segments for packet in read_segment(path))
    lengths = durations(delivery, [int(time * encoding.time_base / delivery.unit) for time in order])
    transparent = any(animation_input.is_transparent(picture) for picture in of(segments))
    shown = [picture if transparent else picture.convert("RGB") for picture in of(segments)]
    plays = animation_input.plays(delivery.info.path)
    options: dict[str, Any] = {"duration": lengths, "save_all": True}
    if kind == "GIF":
        shown = _paletted(shown)
        options |= {"disposal": 2 if transparent else 1, "optimize": False}
        options |= {"loop": max(0, plays - 1)} if plays != 1 else {}
    else:
        options |= {"loop": plays} | ({"quality": 90, "method": 4} if kind == "WebP" else {})
    try:
        shown[0].save(output, "PNG" if kind == "APNG" else kind.upper(), append_images=shown[1:], **options)
        if kind == "WebP" and transparent:
            animation_input.mark_transparent(output)
    except (OSError, ValueError) as error:
        raise MediaError(f"{output}: cannot be written: {reason(error)}") from error
    return order


def of(segments: Sequence[Path]) -> Iterator[Image.Image]:
    """The pictures of segments in order, each opened and not yet decoded."""
    for path in segments:
        for packet in sorted(read_segment(path), key=lambda packet: packet.pts):
            yield Image.open(BytesIO(packet.data), formats=("PNG",))


def _paletted(shown: list[Image.Image]) -> list[Image.Image]:
    """Reduce each picture to a palette of its own, without dithering, which would flicker.

    The transparent entry gets a colour that no picture has: Pillow treats every pixel of its colour as background.
    """
    results, used = [], set[tuple[int, ...]]()
    for picture in shown:
        colours = picture.convert("RGB")
        sample = colours.resize((min(picture.width, _SAMPLED), min(picture.height, _SAMPLED)), Image.Resampling.NEAREST)
        palette = sample.quantize(_PALETTE, Image.Quantize.MEDIANCUT, kmeans=2)
        results.append(colours.quantize(palette=palette, dither=Image.Dither.NONE))
        codes = results[-1].getpalette() or []
        used |= set(zip(codes[::3], codes[1::3], codes[2::3], strict=True))
    if shown[0].mode != "RGBA":
        return results
    none = next(colour for colour in product(range(256), repeat=3) if colour not in used)
    for picture, result in zip(shown, results, strict=True):
        codes = (result.getpalette() or [])[: 3 * _PALETTE]
        result.putpalette([*codes, *([0] * (3 * _PALETTE - len(codes))), *none])
        result.paste(_PALETTE, mask=picture.getchannel("A").point(lambda code: 255 if code < 128 else 0))
        result.info["transparency"] = _PALETTE
    return results

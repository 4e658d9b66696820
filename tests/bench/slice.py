"""One line of a picture over time, `off` beside `relay`: what flickers is noise across the slice.

    python tests/bench/slice.py -o samples/temporal.png --settings sampler=dpmpp_2m steps=8 noise_level=40
    python tests/bench/slice.py CLIP --row 0.5 --columns 60:120 --frames 40

The clip is upscaled as it is. From each result the same row is taken, and the rows are put one below the other: what
stands still is upright, what moves is slanted.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

import torch
from contact_sheet import as_image
from PIL import Image, ImageDraw
from temporal import value

from vidup import Runtime, Settings, Upscaler
from vidup.media.decoding import decode
from vidup.media.probing import probe
from vidup.picture import color

SAMPLES = Path(__file__).resolve().parents[2] / "samples"


def sliced(path: Path, settings: Settings, row: float, columns: tuple[int, int], count: int) -> torch.Tensor:
    """(3, frames, 4 * columns): a row of the results, frame after frame."""
    first, last = columns
    with Upscaler(settings, Runtime(device="cpu")) as upscaler:
        upscaler.reset()
        frames = islice(decode(probe(path)), count)
        pictures = (color.to_rgb(frame) for frame in upscaler.frames(frames))
        rows = [picture[:, int(row * picture.shape[-2]), 4 * first : 4 * last] for picture in pictures]
    return torch.stack(rows, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", nargs="?", type=Path, default=SAMPLES / "film.mp4")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--row", type=float, default=0.5, help="from 0, the top, to 1 (default: 0.5)")
    parser.add_argument("--columns", default="38:100", help="of the input, first:last")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--enlarge", type=int, default=10, help="each row is so many pixels high (default: 10)")
    parser.add_argument("--settings", nargs="*", type=value, default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    first, last = (int(part) for part in arguments.columns.split(":"))
    slices = []
    for mode in ("off", "relay"):
        settings = Settings.preset("mini", temporal=mode, **dict(arguments.settings))
        rows = sliced(arguments.clip, settings, arguments.row, (first, last), arguments.frames)
        size = (2 * rows.shape[-1], arguments.enlarge * rows.shape[-2])
        slices.append(as_image(rows).resize(size, Image.Resampling.NEAREST))
    width, height = slices[0].size
    head, gap = 18, 8
    sheet = Image.new("RGB", (2 * width + gap, head + height), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (name, one) in enumerate(zip(("off", "relay"), slices, strict=True)):
        draw.text((index * (width + gap) + 4, 3), f"{name}: one line, {arguments.frames} frames", fill="black")
        sheet.paste(one, (index * (width + gap), head))
    sheet.quantize(256, dither=Image.Dither.NONE).save(arguments.output, optimize=True)
    print(f"{arguments.output}: {arguments.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()

"""A contact sheet: input, bicubic, mini and truth beside each other, crops at 1:1.

    python tests/bench/contact_sheet.py TRUTH [TRUTH ...] -o sheet.png [--crop X,Y] [--time S]

Each TRUTH is a clip; its frame is reduced by 4 with antialiased bicubic to make the input. With ``--input`` a clip of a
quarter of the size is taken as the input instead, as the samples and their truth are.
"""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from vidup import Runtime, Settings, Upscaler
from vidup.media.decoding import decode
from vidup.media.probing import probe
from vidup.picture import color
from vidup.picture.resample import resize

COLUMNS = ("input", "bicubic", "mini", "truth")


def frame_at(path: Path, seconds: float) -> tuple[torch.Tensor, float]:
    """The RGB picture that is shown at a time, (3, height, width) in [0, 1], and the step of its quantiser."""
    info = probe(path)
    begin = info.pts[0] if info.pts else 0
    chosen = next(decode(info, settings=Settings()))
    for frame in decode(info, settings=Settings()):
        if (frame.pts - begin) * frame.time_base > Fraction(seconds):
            break
        chosen = frame
    return color.to_rgb(chosen).clamp(0, 1), chosen.quantiser or 0.0


def as_image(rgb: torch.Tensor) -> Image.Image:
    return Image.fromarray((rgb.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def busiest(picture: Image.Image, width: int, height: int) -> tuple[int, int]:
    """Where a crop holds the strongest gradients, on a coarse grid."""
    gray = np.asarray(picture.convert("L"), dtype=np.float32)
    strength = np.abs(np.gradient(gray)[0]) + np.abs(np.gradient(gray)[1])
    places = [(x, y) for y in range(0, gray.shape[0] - height + 1, 40) for x in range(0, gray.shape[1] - width + 1, 40)]
    return max(places, key=lambda p: float(strength[p[1] : p[1] + height, p[0] : p[0] + width].mean()))


def row(truth: torch.Tensor, low_res: torch.Tensor, upscalers: dict[str, Upscaler], crop: tuple[int, int] | None,
        size: tuple[int, int]) -> list[Image.Image]:  # fmt: skip
    small, whole = as_image(low_res), as_image(truth)
    pictures = {
        "input": small.resize(whole.size, Image.Resampling.NEAREST),
        "truth": whole,
        **{name: upscaler(small) for name, upscaler in upscalers.items()},
    }
    width, height = size
    x, y = crop or busiest(whole, width, height)
    return [pictures[name].crop((x, y, x + width, y + height)) for name in COLUMNS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("truths", nargs="+", type=Path)
    parser.add_argument("--input", type=Path, action="append", help="the input of each truth, in the same order")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--time", type=float, default=1.0, help="seconds from the beginning")
    parser.add_argument("--crop", action="append", help="X,Y of each crop's corner; the busiest place otherwise")
    parser.add_argument("--size", default="320x240", help="of each crop")
    arguments = parser.parse_args()
    width, height = (int(side) for side in arguments.size.split("x"))
    runtime = Runtime(device="cpu")
    upscalers = {
        "bicubic": Upscaler(Settings(model="bicubic"), runtime),
        "mini": Upscaler(Settings.preset("mini"), runtime),
    }
    rows = []
    for index, path in enumerate(arguments.truths):
        truth, _ = frame_at(path, arguments.time)
        truth = truth[:, : truth.shape[1] // 4 * 4, : truth.shape[2] // 4 * 4]
        low_res, step = resize(truth[None], (truth.shape[1] // 4, truth.shape[2] // 4))[0], 0.0
        if arguments.input:
            low_res, step = frame_at(arguments.input[index], arguments.time)
        corner = tuple(int(part) for part in arguments.crop[index].split(",")) if arguments.crop else None
        asked = {name: upscaler.replace(quantiser=step) for name, upscaler in upscalers.items()}
        rows.append(row(truth, low_res, asked, corner, (width, height)))
    head, gap = 18, 4
    sheet = Image.new("RGB", (4 * (width + gap) - gap, head + len(rows) * (height + gap) - gap), "white")
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(COLUMNS):
        draw.text((column * (width + gap) + 4, 3), name, fill="black")
        for line, crops in enumerate(rows):
            sheet.paste(crops[column], (column * (width + gap), head + line * (height + gap)))
    sheet.save(arguments.output)
    print(f"{arguments.output}: {len(rows)} rows")


if __name__ == "__main__":
    main()

"""Planes to RGB and back: against formulas written out here, and round trips of every layout."""

import numpy as np
import pytest
import torch

from vidup.color import BT601, BT709, RGB, UNSPECIFIED, from_rgb, layout, resolve, to_rgb
from vidup.errors import MediaError
from vidup.frame import Color, Frame

MATRICES = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}
SAMPLINGS = {"444": (1, 1), "422": (2, 1), "420": (2, 2), "411": (4, 1), "410": (4, 4), "440": (1, 2)}
PALETTE = [(0, 0, 0), (1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0.78, 0.12, 0.24), (0.5, 0.5, 0.5), (0.1, 0.6, 0.9)]


def codes_of(color: tuple[float, ...], matrix: int, bits: int, full: bool) -> tuple[float, float, float]:
    """Y', Cb, Cr of a colour, not rounded: equations of ITU-R BT.709 and BT.2100."""
    kr, kb = MATRICES[matrix]
    red, green, blue = color
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    cb, cr = (blue - luma) / (1 - kb) / 2, (red - luma) / (1 - kr) / 2
    if full:
        peak = 2**bits - 1
        return luma * peak, cb * peak + 2 ** (bits - 1), cr * peak + 2 ** (bits - 1)
    step = 2 ** (bits - 8)
    return (16 + 219 * luma) * step, (128 + 224 * cb) * step, (128 + 224 * cr) * step


def flat(color: tuple[float, ...], height: int, width: int) -> torch.Tensor:
    return torch.tensor(color, dtype=torch.float32)[:, None, None].expand(3, height, width)


def name_of(sampling: str, bits: int) -> str:
    return f"yuv{sampling}p" + (f"{bits}le" if bits > 8 else "")


def random_planes(shapes: list[tuple[int, int]], bits: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(bits)
    return tuple(rng.integers(0, 2**bits, shape).astype(np.uint8 if bits == 8 else np.uint16) for shape in shapes)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("matrix", MATRICES)
def test_flat_colours_have_the_codes_of_the_standard(matrix: int, bits: int, full: bool):
    for color in PALETTE:
        planes = from_rgb(flat(color, 8, 8), name_of("420", bits), Color(matrix, full_range=full))
        assert [plane.shape for plane in planes] == [(8, 8), (4, 4), (4, 4)]
        for plane, expected in zip(planes, codes_of(color, matrix, bits, full), strict=True):
            assert plane.dtype == (np.uint8 if bits == 8 else np.uint16)
            assert plane.min() == plane.max()
            clipped = min(expected, 2**bits - 1)  # full-range blue has a Cb of half a code above the peak
            assert abs(int(plane[0, 0]) - clipped) <= 0.5 + 2e-7 * 2**bits


@pytest.mark.parametrize(
    ("matrix", "pix_fmt", "full", "color", "codes"),
    [
        (1, "yuv444p", False, (1, 0, 0), (63, 102, 240)),
        (6, "yuv444p", False, (1, 0, 0), (81, 90, 240)),
        (5, "yuv444p", True, (1, 0, 0), (76, 85, 255)),
        (6, "yuv444p", False, (1, 1, 1), (235, 128, 128)),
        (9, "yuv444p10le", False, (1, 1, 1), (940, 512, 512)),
        (9, "yuv444p10le", False, (0, 0, 0), (64, 512, 512)),
    ],
)
def test_codes_that_are_printed_in_books(matrix, pix_fmt, full, color, codes):
    planes = from_rgb(flat(color, 2, 2), pix_fmt, Color(matrix, full_range=full))
    assert tuple(int(plane[0, 0]) for plane in planes) == codes


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("matrix", MATRICES)
def test_444_comes_back_to_the_code(matrix: int, bits: int, full: bool):
    """Any codes, those beyond black and white and those that no RGB colour has included."""
    pix_fmt, color = name_of("444", bits), Color(matrix, full_range=full)
    planes = random_planes([(40, 50)] * 3, bits)
    back = from_rgb(to_rgb(Frame(planes, pix_fmt, color)), pix_fmt, color)
    for before, after in zip(planes, back, strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_flat_patches_come_back_within_one_code(sampling: str, bits: int, full: bool):
    pix_fmt, (x, y) = name_of(sampling, bits), SAMPLINGS[sampling]
    color, side = Color(BT709, full_range=full), 32
    values = np.array([[0.2, 0.7], [0.55, 0.35]]) * (2**bits - 1)
    kind = np.uint8 if bits == 8 else np.uint16
    shapes = [(side, side), (side // y, side // x), (side // y, side // x)]
    planes = [np.kron(np.roll(values, turn), np.ones((h, w))).astype(kind)
              for turn, (h, w) in enumerate(shapes)]  # fmt: skip
    back = from_rgb(to_rgb(Frame(tuple(planes), pix_fmt, color)), pix_fmt, color)
    inside = np.kron(np.ones((2, 2)), np.pad(np.ones((side - 16, side - 16)), 8)) > 0
    for before, after, step in zip(planes, back, [(1, 1), (y, x), (y, x)], strict=True):
        assert before.shape == after.shape
        difference = np.abs(before.astype(int) - after)[inside[:: step[0], :: step[1]]]
        assert difference.size and difference.max() <= 1


@pytest.mark.parametrize(
    ("pix_fmt", "count"), [("gray", 1), ("gray10le", 1), ("gbrp", 3), ("gbrp12le", 3), ("gbrp16le", 3)]
)
def test_gray_and_rgb_come_back_to_the_code(pix_fmt: str, count: int):
    kind = layout(pix_fmt)
    assert kind is not None and kind.planes == count
    planes = random_planes([(11, 13)] * count, kind.bits)
    color = Color(RGB if count == 3 else BT601, full_range=True)
    rgb = to_rgb(Frame(planes, pix_fmt, color))
    assert rgb.shape == (3, 11, 13) and rgb.dtype == torch.float32
    order = [2, 0, 1] if count == 3 else [0, 0, 0]  # ffmpeg's planes are G, B, R
    for channel, plane in zip(rgb, order, strict=True):
        np.testing.assert_allclose(channel.numpy(), planes[plane] / (2**kind.bits - 1), atol=1e-6)
    for before, after in zip(planes, from_rgb(rgb, pix_fmt, color), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("sampling", ["422", "420", "411", "410", "440"])
def test_chroma_keeps_its_place(sampling: str):
    """A ramp of chroma: each sample on the left column of its group and between its rows, both ways."""
    x, y = SAMPLINGS[sampling]
    height = width = 16 * max(x, y)
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    ramp = 20000 + 300 * columns + 200 * rows
    at = (rows[::y, ::x] + (y - 1) / 2, columns[::y, ::x])
    decimated = 20000 + 300 * at[1] + 200 * at[0]
    luma, flat_chroma = np.full((height, width), 30000), np.full(decimated.shape, 32768)
    color = Color(BT709, full_range=True)
    planes = tuple(plane.round().astype(np.uint16) for plane in (luma, decimated, flat_chroma))
    rgb = to_rgb(Frame(planes, name_of(sampling, 16), color))
    inside = (slice(2 * y, -2 * y), slice(2 * x, -2 * x))  # edges are repeated, not continued
    found = from_rgb(rgb, "yuv444p16le", color)[1]
    assert np.abs(found.astype(float) - ramp)[inside].max() <= 1
    full = tuple(plane.round().astype(np.uint16) for plane in (luma, ramp, np.full(ramp.shape, 32768)))
    rgb = to_rgb(Frame(full, "yuv444p16le", color))
    reduced = from_rgb(rgb, name_of(sampling, 16), color)[1]
    assert np.abs(reduced.astype(float) - decimated)[2:-2, 2:-2].max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (67, 101)])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_odd_sizes(sampling: str, size: tuple[int, int]):
    x, y = SAMPLINGS[sampling]
    (height, width), pix_fmt, color = size, name_of(sampling, 8), Color(BT601)
    smaller = (-(-height // y), -(-width // x))
    planes = from_rgb(flat((0.7, 0.2, 0.4), height, width), pix_fmt, color)
    assert [plane.shape for plane in planes] == [size, smaller, smaller]
    rgb = to_rgb(Frame(planes, pix_fmt, color))
    assert rgb.shape == (3, *size)
    for before, after in zip(planes, from_rgb(rgb, pix_fmt, color), strict=True):
        np.testing.assert_array_equal(before, after)


def test_values_are_rounded_and_then_clipped():
    planes = from_rgb(flat((2.0, -1.0, 0.5), 2, 2), "gbrp", Color(RGB, full_range=True))
    assert [int(plane[0, 0]) for plane in planes] == [0, 128, 255]
    white = from_rgb(flat((1.05, 1.05, 1.05), 2, 2), "yuv444p", Color(BT709))
    assert int(white[0][0, 0]) == round(16 + 219 * 1.05)  # above white, and kept


@pytest.mark.parametrize(
    "pix_fmt", ["nv12", "rgb24", "pal8", "yuv420p10be", "gbrpf32le", "yuyv422", "yuv999p", "nothing"]
)
def test_formats_that_are_not_converted_are_refused(pix_fmt: str):
    plane = np.zeros((4, 4), np.uint8)
    with pytest.raises(MediaError, match=pix_fmt):
        to_rgb(Frame((plane, plane, plane), pix_fmt, Color(BT709)))
    with pytest.raises(MediaError, match=pix_fmt):
        from_rgb(torch.zeros(3, 4, 4), pix_fmt, Color(BT709))


@pytest.mark.parametrize(
    ("color", "pix_fmt", "size", "matrix", "full"),
    [
        (Color(UNSPECIFIED), "yuv420p", (720, 576), BT601, False),
        (Color(UNSPECIFIED), "yuv420p", (960, 720), BT709, False),
        (Color(UNSPECIFIED), "yuv420p", (1280, 536), BT709, False),
        (Color(UNSPECIFIED, full_range=True), "yuv420p", (64, 48), BT601, True),
        (Color(RGB), "yuv420p", (64, 48), BT601, False),
        (Color(BT709), "yuv420p", (64, 48), BT709, False),
        (Color(5), "yuv420p", (1920, 1080), 5, False),
        (Color(9), "yuv420p10le", (3840, 2160), 9, False),
        (Color(BT601), "yuvj420p", (64, 48), BT601, True),
        (Color(BT709), "gbrp", (64, 48), RGB, True),
        (Color(10), "gbrp10le", (64, 48), RGB, True),
    ],
)
def test_resolve(color: Color, pix_fmt: str, size: tuple[int, int], matrix: int, full: bool):
    tagged = Color(color.matrix, 9, 16, color.full_range)
    assert resolve(tagged, pix_fmt, *size) == Color(matrix, 9, 16, full)


@pytest.mark.parametrize("matrix", [8, 10, 11, 14])
def test_resolve_refuses_matrices_that_it_cannot_convert(matrix: int):
    with pytest.raises(MediaError, match=f"matrix {matrix} "):
        resolve(Color(matrix), "yuv420p", 64, 48)

"""Planes to RGB and back: against formulas written out here, and round trips of every layout, file to file too."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

import vidup
from vidup.config import Settings
from vidup.errors import MediaError
from vidup.frame import Color, Frame, layout
from vidup.picture.color import BT601, BT709, MATRIX_NAMES, RGB, UNSPECIFIED, YCGCO, from_rgb, resolve, to_rgb

MATRICES = {
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
}
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


PATCH, MARGIN = 24, 8
"""Sides of a flat patch, and of what is not compared at its edges, in luma samples: chroma is mixed there."""


def patches(bits: int) -> np.ndarray:
    """Codes of Y, U and V: the corners of all that a file can hold, the nominal blacks and whites, and others."""
    peak, step = 2**bits - 1, 2 ** (bits - 8)
    corners = [(y, u, v) for y in (0, peak) for u in (0, peak) for v in (0, peak)]
    nominal = [(y * step, c * step, d * step) for y in (16, 126, 235) for c, d in ((128, 128), (16, 240), (240, 16))]
    others = np.random.default_rng(bits).integers(0, peak + 1, (12, 3))
    return np.concatenate([corners, nominal, others])


def patched(codes: np.ndarray, bits: int, x: int, y: int) -> tuple[np.ndarray, ...]:
    """Planes of flat patches in a row, chroma smaller by `x` and `y`."""
    kind = np.uint8 if bits == 8 else np.uint16
    sizes = [(PATCH, PATCH), (PATCH // y, PATCH // x), (PATCH // y, PATCH // x)]
    return tuple(
        np.kron(codes[None, :, plane], np.ones(size)).astype(kind) for plane, size in enumerate(sizes[: codes.shape[1]])
    )


def insides(plane: np.ndarray, count: int) -> np.ndarray:
    """The middle of each patch of a plane: (patch, rows, columns)."""
    height, width = plane.shape[0], plane.shape[1] // count
    top, left = height * MARGIN // PATCH, width * MARGIN // PATCH
    return plane.reshape(height, count, width).transpose(1, 0, 2)[:, top : height - top, left : width - left]


def rgb_of(codes: np.ndarray, matrix: int, bits: int, full: bool) -> np.ndarray:
    """R'G'B' of codes in float64: equations of ITU-T H.273, solved for them by hand."""
    step, peak = 2 ** (bits - 8), 2**bits - 1
    y, u, v = codes.astype(np.float64).T
    luma = y / peak if full else (y / step - 16) / 219
    cb, cr = ((c - 128 * step) / (peak if full else 224 * step) for c in (u, v))
    if matrix == YCGCO:
        return np.stack([luma - cb + cr, luma + cb, luma - cb - cr], 1)
    kr, kb = MATRICES[matrix]
    red, blue = luma + 2 * (1 - kr) * cr, luma + 2 * (1 - kb) * cb
    return np.stack([red, (luma - kr * red - kb * blue) / (1 - kr - kb), blue], 1)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("bits", [8, 9, 10, 12, 14, 16])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("matrix", [*MATRICES, YCGCO])
def test_flat_patches(matrix: int, sampling: str, bits: int, full: bool):
    """Every matrix, range, depth and sampling: RGB as the standard has it, and back within one code."""
    pix_fmt, color, codes = name_of(sampling, bits), Color(matrix, full_range=full), patches(bits)
    planes = patched(codes, bits, *SAMPLINGS[sampling])
    rgb = to_rgb(Frame(planes, pix_fmt, color))
    expected = rgb_of(codes, matrix, bits, full)
    for channel in range(3):
        found = insides(rgb[channel].numpy().astype(np.float64), len(codes))
        assert found.size and np.abs(found - expected[:, channel, None, None]).max() < 2e-6
    for before, after in zip(planes, from_rgb(rgb, pix_fmt, color), strict=True):
        assert (before.shape, before.dtype) == (after.shape, after.dtype)
        assert np.abs(insides(before.astype(int) - after, len(codes))).max() <= 1


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("bits", [8, 9, 10, 12, 14, 16])
@pytest.mark.parametrize("family", ["gray", "gbrp"])
def test_gray_and_rgb_patches(family: str, bits: int, full: bool):
    pix_fmt, peak = family + (f"{bits}le" if bits > 8 else ""), 2**bits - 1
    codes = np.linspace(0, peak, 24).round().astype(int)[:, None]
    codes = codes if family == "gray" else np.concatenate([codes, np.roll(codes, 5), codes[::-1]], 1)
    planes = patched(codes, bits, 1, 1)
    color = Color(BT709 if family == "gray" else RGB, full_range=full)
    rgb = to_rgb(Frame(planes, pix_fmt, color))
    step = 2 ** (bits - 8)
    expected = codes / peak if full else (codes / step - 16) / 219
    for channel, plane in enumerate([0, 0, 0] if family == "gray" else [2, 0, 1]):  # planes are G, B, R
        found = insides(rgb[channel].numpy().astype(np.float64), len(codes))
        assert np.abs(found - expected[:, plane, None, None]).max() < 1e-6
    for before, after in zip(planes, from_rgb(rgb, pix_fmt, color), strict=True):
        np.testing.assert_array_equal(before, after)


def test_ycgco_by_hand():
    planes = from_rgb(flat((1, 0, 0), 2, 2), "yuv444p", Color(YCGCO, full_range=True))
    assert [int(plane[0, 0]) for plane in planes] == [64, 64, 255]  # Y 1/4, Cg -1/4, Co 1/2
    planes = from_rgb(flat((0, 1, 0), 2, 2), "yuv444p", Color(YCGCO))
    assert [int(plane[0, 0]) for plane in planes] == [126, 240, 128]  # Y 1/2, Cg 1/2, Co 0


def write_ffv1(path: Path, planes: tuple[np.ndarray, ...], pix_fmt: str, color: Color) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        context = stream.codec_context
        context.width, context.height, context.pix_fmt = planes[0].shape[1], planes[0].shape[0], pix_fmt
        context.colorspace, context.color_range = color.matrix, 2 if color.full_range else 1
        frame = av.VideoFrame(context.width, context.height, pix_fmt)
        for plane, source in zip(frame.planes, planes, strict=True):
            rows = np.frombuffer(plane, source.dtype).reshape(plane.height, -1)
            rows[:, : source.shape[1]] = source
        frame.colorspace, frame.color_range = context.colorspace, context.color_range
        for index in range(2):
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def check_file_to_file(tmp_path: Path, codes: np.ndarray, pix_fmt: str, color: Color) -> None:
    kind = layout(pix_fmt)
    assert kind is not None
    planes = patched(codes, kind.bits, kind.chroma_x, kind.chroma_y)
    source = write_ffv1(tmp_path / "in.mkv", planes, pix_fmt, color)
    output = vidup.upscale(source, tmp_path / "out.mkv", Settings(model="nearest", scale=2, codec="ffv1")).output
    with av.open(str(output)) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 2
    for frame in frames:
        assert frame.format.name == pix_fmt
        assert frame.color_range == (2 if color.full_range else 1)
        if kind.family == "yuv":
            assert frame.colorspace == color.matrix
        for before, plane in zip(planes, frame.planes, strict=True):
            rows = np.frombuffer(plane, before.dtype).reshape(plane.height, -1)[:, : plane.width]
            assert rows.shape == (2 * before.shape[0], 2 * before.shape[1])
            difference = rows.astype(int) - np.kron(before, np.ones((2, 2), int))
            assert np.abs(insides(difference, len(codes))).max() <= 1


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("matrix", [*MATRICES, YCGCO])
def test_file_to_file(matrix: int, bits: int, full: bool, tmp_path: Path):
    """The whole way: decoded, to RGB, enlarged, back, encoded without loss, joined, and tagged as it was."""
    codes = patches(bits)[8:]
    check_file_to_file(tmp_path, codes, name_of("420", bits), Color(matrix, full_range=full))


@pytest.mark.parametrize("pix_fmt", ["yuv422p", "yuv411p", "yuv440p", "yuv410p", "yuv444p14le", "gray", "gray16le"])
def test_other_samplings_file_to_file(pix_fmt: str, tmp_path: Path):
    kind = layout(pix_fmt)
    assert kind is not None
    check_file_to_file(tmp_path, patches(kind.bits)[:, : kind.planes], pix_fmt, Color(BT601))


@pytest.mark.parametrize("bits", [9, 10, 12, 14, 16])
def test_rgb_file_to_file(bits: int, tmp_path: Path):
    check_file_to_file(tmp_path, patches(bits), f"gbrp{bits}le", Color(RGB, full_range=True))


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
        Frame((plane, plane, plane), pix_fmt, Color(BT709))
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


@pytest.mark.parametrize("matrix", [10, 11, 14])
def test_resolve_refuses_matrices_that_it_cannot_convert(matrix: int):
    with pytest.raises(MediaError, match=f"matrix {matrix} .*{MATRIX_NAMES.get(matrix, '')}.*--matrix"):
        resolve(Color(matrix), "yuv420p", 64, 48)
    assert resolve(Color(matrix), "yuv420p", 64, 48, "bt709") == Color(BT709)


@pytest.mark.parametrize(
    ("setting", "matrix"), [("bt709", 1), ("bt601", 6), ("bt2020", 9), ("smpte240m", 7), ("fcc", 4), ("auto", 5)]
)
def test_the_matrix_can_be_said(setting: str, matrix: int):
    assert Settings(matrix=setting).matrix == setting
    assert resolve(Color(5, 9, 16, True), "yuv420p", 64, 48, setting) == Color(matrix, 9, 16, True)
    assert resolve(Color(2), "gbrp", 64, 48, setting).matrix == RGB


@pytest.mark.parametrize(
    ("pix_fmt", "tagged"), [("yuv420p", False), ("yuv420p", True), ("yuvj420p", True), ("gbrp", True)]
)
def test_the_range_can_be_said(pix_fmt: str, tagged: bool):
    for setting, full in (("limited", False), ("full", True), ("auto", tagged)):
        assert resolve(Color(2, full_range=tagged), pix_fmt, 64, 48, "auto", setting).full_range == full


PLANES = {"y": np.zeros((5, 7), np.uint8), "uv": np.zeros((3, 4), np.uint8), "deep": np.zeros((5, 7), np.uint16)}


@pytest.mark.parametrize(
    ("planes", "pix_fmt", "said"),
    [
        (["y"], "yuv420p", "number of 3, not 1"),
        (["y", "uv", "uv", "y", "y"], "yuva420p", "number of 3, not 5"),
        (["y", "y", "uv"], "yuv420p", r"plane 1 of yuv420p is of shape \(5, 7\), expected \(3, 4\)"),
        (["y", "uv", "uv", "uv"], "yuva420p", "plane 3 of yuva420p"),
        (["y", "y", "uv"], "gbrp", "plane 2 of gbrp"),
        (["deep"], "gray", "of uint8, not uint16"),
        (["y"], "gray10le", "of uint16, not uint8"),
        (["float"], "gray", "of uint8, not float32"),
        (["signed"], "gray", "of uint8, not int8"),
        (["colours"], "gray", r"of shape \(5, 7, 3\), expected \(height, width\)"),
        (["empty"], "gray", r"of shape \(0, 7\), expected \(height, width\)"),
    ],
)
def test_a_frame_refuses_planes_that_do_not_fit(planes: list[str], pix_fmt: str, said: str):
    wrong = {
        **PLANES,
        "float": np.zeros((5, 7), np.float32),
        "signed": np.zeros((5, 7), np.int8),
        "colours": np.zeros((5, 7, 3), np.uint8),
        "empty": np.zeros((0, 7), np.uint8),
    }
    with pytest.raises(MediaError, match=said):
        Frame(tuple(wrong[name] for name in planes), pix_fmt, Color(BT709))


def test_frames_are_compared_and_shown():
    y, uv = PLANES["y"], PLANES["uv"]
    frame, same = (Frame((y.copy(), uv, uv), "yuv420p", Color(BT709), 7, 1, Fraction(1, 25)) for _ in range(2))
    assert frame == same and frame != replace(same, pts=8) and frame != "a frame"
    assert frame != replace(same, planes=(y + 1, uv, uv)) and frame.shows(replace(same, pts=8))
    assert repr(frame).startswith("Frame(7x5 yuv420p, pts=7, duration=1, time_base=1/25, Color(matrix=1,")
    assert Frame((y, uv, uv, y), "yuva420p", Color(BT709)) != Frame((y, uv, uv), "yuva420p", Color(BT709))


@pytest.mark.parametrize("matrix", [UNSPECIFIED, RGB, 10])
def test_planes_of_yuv_want_a_matrix_that_is_known(matrix: int):
    frame = Frame((PLANES["y"], PLANES["uv"], PLANES["uv"]), "yuv420p", Color(matrix))
    with pytest.raises(MediaError, match=f"colour matrix {matrix}"):
        to_rgb(frame)
    with pytest.raises(MediaError, match=f"colour matrix {matrix}"):
        from_rgb(torch.zeros(3, 4, 4), "yuv420p", Color(matrix))
    assert from_rgb(torch.ones(3, 4, 4), "gray", Color(matrix))[0].max() == 235

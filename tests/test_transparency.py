"""Transparency of video: enlarged like the picture and kept where container and codec hold it; said where not."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from vidup import Frame
from vidup.cli import main
from vidup.picture import color

NEAREST = ["--model", "nearest", "--scale", "2"]
WIDTH, HEIGHT, COUNT = 32, 24, 4
Output = pytest.CaptureFixture[str]


def planes(index: int) -> list[np.ndarray]:
    """Green, blue and red of 255, smooth, and an edge of transparency that moves."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    wave = 128 + 60 * np.sin(x / 7 + index / 3) * np.cos(y / 5)
    alpha = np.where(x > 8 + 3 * index, 200, 30)
    return [wave, 255 - wave, np.full_like(wave, 100 + 5 * index), alpha]


def frame(index: int, pix_fmt: str) -> av.VideoFrame:
    result = av.VideoFrame(WIDTH, HEIGHT, "gbrap16le")
    for plane, codes in zip(result.planes, planes(index), strict=True):
        data = np.ascontiguousarray((codes * 257).astype(np.uint16)).view(np.uint8)
        np.frombuffer(plane, np.uint8).reshape(HEIGHT, -1)[:, : data.shape[1]] = data
    result = result.reformat(format=pix_fmt, dst_colorspace="ITU709")
    result.pts, result.time_base = index, Fraction(1, 25)
    return result


def make(path: Path, codec: str, pix_fmt: str) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        context = stream.codec_context
        context.width, context.height, context.pix_fmt, context.colorspace = WIDTH, HEIGHT, pix_fmt, 1
        context.color_range = 1
        if codec == "libvpx-vp9":
            stream.metadata["alpha_mode"] = "1"
            context.options = {"crf": "4", "b": "0", "cpu-used": "8"}
        for index in range(COUNT):
            for packet in stream.encode(frame(index, pix_fmt)):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path


def alphas(path: Path) -> tuple[str, list[np.ndarray]]:
    """The pixel format of a video, and the transparency of each frame, of 255."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        beside = stream.metadata.get("ALPHA_MODE") == "1"  # which FFmpeg's own decoder leaves out
        context = av.CodecContext.create("libvpx-vp9", "r") if beside else stream.codec_context
        found = [one for packet in container.demux(stream) for one in context.decode(packet if packet.size else None)]
    kind = found[0].format
    flat = [one.reformat(format="gbrap16le") for one in found]
    return kind.name, [np.from_dlpack(one.planes[3]).astype(float) / 257 for one in flat]


@pytest.mark.parametrize(
    ("source", "codec", "pix_fmt", "output", "words", "kept"),
    [
        ("in.mov", "prores_ks", "yuva444p10le", "out.mov", ["-c", "prores_ks"], "yuva444p12le"),
        ("in.mkv", "ffv1", "yuva420p", "out.mkv", ["-c", "ffv1"], "yuva420p"),
        ("in.mkv", "ffv1", "gbrap16le", "out.mkv", ["-c", "ffv1"], "gbrap16le"),
        ("in.mov", "qtrle", "argb", "out.mkv", ["-c", "ffv1"], "bgra"),
        ("in.mov", "png", "rgba64be", "out.mov", ["-c", "prores_ks"], "yuva444p12le"),
        ("in.webm", "libvpx-vp9", "yuva420p", "out.webm", ["-e", "cpu-used=8"], "yuva420p"),
        ("in.webm", "libvpx-vp9", "yuva420p", "out.mov", ["-c", "prores_ks"], "yuva444p12le"),
        ("in.mov", "qtrle", "argb", "out.webm", ["-e", "cpu-used=8"], "yuva420p"),
        ("in.mov", "prores_ks", "yuva444p10le", "%03d.png", [], "rgba64be"),
        ("in.mov", "png", "ya8", "%03d.tif", [], "rgba"),
        ("in.mov", "png", "rgba", "%03d.exr", [], "gbrapf16le"),
    ],
)
def test_transparency_is_kept(tmp_path: Path, source: str, codec: str, pix_fmt: str, output: str, words, kept: str):
    made = make(tmp_path / source, codec, pix_fmt)
    folder = tmp_path / "out"
    folder.mkdir()
    assert main(["upscale", str(made), "-o", str(folder / output), *words, *NEAREST]) == 0
    _, before = alphas(made)
    if "%" in output:
        parts = [alphas(path) for path in sorted(folder.iterdir())]
        found, after = parts[0][0], [one for _, (one,) in parts]
    else:
        found, after = alphas(folder / output)
    assert found == kept and len(after) == COUNT
    for small, large in zip(before, after, strict=True):
        assert large.shape == (2 * HEIGHT, 2 * WIDTH)
        edge = np.abs(np.diff(small, axis=1)).max(0).argmax()
        for columns in (slice(0, max(1, edge - 3)), slice(edge + 5, None)):  # but for the edge, which is bicubic
            assert np.abs(large[::2, ::2][:, columns] - small[:, columns]).max() <= (
                12 if "webm" in (source + output) else 2
            )


def test_what_does_not_keep_it_says_so(tmp_path: Path, capsys: Output):
    source = make(tmp_path / "in.mov", "prores_ks", "yuva444p10le")
    assert main(["upscale", str(source), "-o", str(tmp_path / "out.mp4"), *NEAREST]) == 0
    assert "note: transparency is dropped: the picture is made opaque; prores_ks" in capsys.readouterr().err
    assert main(["upscale", str(source), "-o", str(tmp_path / "out.mov"), "-c", "prores_ks", *NEAREST]) == 0
    assert "transparency" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "codec", "pix_fmt", "output", "words", "wrong"),
    [
        ("in.mov", "prores_ks", "yuva444p10le", "out.mov", ["-c", "prores_ks"], "contrary"),
        ("in.mkv", "ffv1", "yuva420p", "out.mkv", ["-c", "ffv1"], "contrary"),
        ("in.webm", "libvpx-vp9", "yuva420p", "out.webm", ["-e", "cpu-used=8"], "early"),
        ("in.mov", "png", "rgba", "%03d.png", [], "opaque"),
        ("in.mov", "png", "rgba", "out.apng", [], "early"),
    ],
)
def test_transparency_is_proved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output, source, codec, pix_fmt, output, words, wrong
):
    """What is transparent in the output is so in the source, at that time."""
    made = make(tmp_path / source, codec, pix_fmt)
    held: list[torch.Tensor] = []
    alpha_of = color.alpha_of

    def changed(frame: Frame, device: torch.device) -> torch.Tensor | None:
        alpha = alpha_of(frame, device)
        assert alpha is not None
        held.append(alpha)
        return {"contrary": 1 - alpha, "opaque": torch.ones_like(alpha), "early": held[0]}[wrong]

    monkeypatch.setattr(color, "alpha_of", changed)
    assert main(["upscale", str(made), "-o", str(tmp_path / output), *words, *NEAREST]) == 1
    assert ": transparency: frame " in capsys.readouterr().err

"""Writes the newest result of a running job and its source frame to files, so that one can watch the job."""

from __future__ import annotations

import logging
import time
from io import BytesIO
from pathlib import Path

from PIL import Image

from vidup.errors import first_line
from vidup.frame import Frame
from vidup.job.disk import write_atomically
from vidup.job.plan import Job
from vidup.picture import color
from vidup.picture.geometry import Turn

log = logging.getLogger(__name__)

_INTERVAL = 2.0  # seconds between two pictures, at the least
_SHARE = 0.05  # of the job's time, that writing may take


class NewestPicture:
    """Writes ``before.jpg`` and ``after.jpg``, upright, with the frame's time as comment.

    Each file is complete at any moment; two with the same comment belong together. After an error in writing the job
    goes on without them. The folder is created if missing; None writes nothing.
    """

    def __init__(self, folder: str | None, job: Job) -> None:
        self._folder, self._job = Path(folder) if folder else None, job
        self._sources: dict[int, Frame] = {}
        self._due = 0.0

    def add_source(self, frame: Frame) -> None:
        """Remember a source frame until its result arrives."""
        if self._folder is not None:
            self._sources[frame.pts] = frame

    def add_result(self, frame: Frame, is_new: bool) -> None:
        """Write a result and its source frame, if the last ones were written long enough ago."""
        source = self._sources.pop(frame.pts, None)
        if self._folder is None or source is None or not is_new or time.monotonic() < self._due:
            return
        began, info, turn = time.monotonic(), self._job.info, self._job.turn
        at = f"{float(frame.pts * frame.time_base - info.begin):.3f}"
        try:
            self._folder.mkdir(exist_ok=True)
            _write(self._folder / "before.jpg", source, info.rotation, at)
            _write(self._folder / "after.jpg", frame, info.rotation if turn == Turn() else 0, at)
        except (OSError, ValueError) as error:  # JPEG has at most 65,535 pixels a side
            log.warning("%s: the newest picture cannot be written there: %s", self._folder, first_line(error))
            self._folder, self._sources = None, {}
        now = time.monotonic()
        self._due = now + max(_INTERVAL, (now - began) / _SHARE)


def _write(path: Path, frame: Frame, rotation: int, comment: str) -> None:
    rgb = color.to_array(frame)
    image = Image.fromarray(rgb if rgb.dtype.itemsize == 1 else (rgb >> 8).astype("uint8"))
    data = BytesIO()
    image.rotate(rotation, expand=True).save(data, "JPEG", quality=90, subsampling=0, comment=comment.encode())
    write_atomically(path, data.getvalue())

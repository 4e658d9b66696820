"""The queue of previews: which wait, which one is being made, which files of finished ones are kept."""

from __future__ import annotations

import logging
import secrets
import shutil
import threading
from collections import OrderedDict
from pathlib import Path
from time import monotonic

import vidup
from vidup.errors import ConfigError, Stopped, VidupError, first_line, system_words
from vidup.ui.films import Films
from vidup.ui.forms import Form
from vidup.ui.making import Maker, Preview, State
from vidup.ui.safety import Refused

log = logging.getLogger(__name__)

_MOST_WAITING = 32
_MOST_KEPT, _MOST_BYTES = 40, 2 << 30
"""Finished previews whose files are kept, and the limit of their size."""
_IDLE = 300.0
"""Seconds after which an unused model is unloaded."""


class Previews:
    """All previews of a server, made one at a time in the order of their requests.

    Args:
        folder: for their files; removed by `close`.
    """

    def __init__(self, films: Films, folder: Path) -> None:
        self._folder = folder
        self._all: OrderedDict[str, Preview] = OrderedDict()
        self._changed = threading.Condition()
        self._current: Preview | None = None
        self._thread: threading.Thread | None = None
        self._ends = self._unloads = self._preloads = False
        self._maker = Maker(films, self._is_stopping)
        self._measured: OrderedDict[tuple[Path, vidup.Settings, vidup.Runtime], Preview] = OrderedDict()

    def begin(self, source: Path, at: float, form: Form, kind: str) -> str:
        """Queue a preview of the frame at a time, in seconds; returns its id.

        Raises:
            ConfigError: no such kind.
            Refused: too many are waiting.
        """
        if kind not in ("frame", "moving"):
            raise ConfigError(f"kind = {str(kind)[:80]!r}: expected frame or moving")
        name = secrets.token_hex(8)
        with self._changed:
            if sum(one.state == "waiting" for one in self._all.values()) >= _MOST_WAITING:
                raise Refused(f"{_MOST_WAITING} previews are waiting; cancel some of them", 429)
            self._all[name] = Preview(name, source, at, form, kind, self._folder / name)  # type: ignore[arg-type]
            self._begin()
        return name

    def preload(self) -> None:
        """Load `mini` in the background."""
        with self._changed:
            self._preloads = True
            self._begin()

    def _begin(self) -> None:
        """Start the thread if it is not running, and wake it; called with the lock held."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="previews", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def find(self, name: str) -> Preview:
        """The preview with this id; raises Refused."""
        found = self._all.get(name)
        if found is None:
            raise Refused("there is no such preview any more", 404)
        found.asked = monotonic()
        return found

    def cancel(self, name: str) -> None:
        """Cancel a preview; an unknown id has no effect."""
        with self._changed:
            preview = self._all.get(name)
            if preview is not None and preview.state in ("waiting", "running"):
                preview.cancelled, preview.state = True, "stopped"

    def last_of(self, source: Path, form: Form) -> Preview | None:
        """The last finished preview of a file with these settings, for its time per frame."""
        return self._measured.get((source, form.settings, form.runtime))

    def unload(self) -> None:
        """Unload the model once the queue is empty, because a run needs the memory."""
        with self._changed:
            self._unloads = True
            self._changed.notify_all()

    def close(self) -> None:
        """Cancel all previews and remove their files."""
        with self._changed:
            self._ends = True
            for preview in self._all.values():
                preview.cancelled = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(10)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _work(self) -> None:
        if self._preloads:
            try:
                self._maker.preload()
            except Exception as error:  # a preview that needs it will report it
                log.debug("the small model: %s", error, exc_info=error)
        while (preview := self._next()) is not None:
            try:
                self._maker.make(preview)
                self._end(preview, "done")
            except Stopped:
                self._end(preview, "stopped")
            except VidupError as error:
                self._end(preview, "failed", str(error))
            except OSError as error:
                self._end(preview, "failed", system_words(error, preview.source))
            except Exception as error:  # a bug: reported, and logged with its traceback
                log.exception("%s", error)
                self._end(preview, "failed", f"{type(error).__name__}: {first_line(error)}")
        self._maker.unload()

    def _next(self) -> Preview | None:
        """Wait for the next preview; None after `close`."""
        while True:
            with self._changed:
                self._current = None
                waiting = [one for one in self._all.values() if one.state == "waiting"]
                for preview in waiting:
                    if preview.stopping():
                        preview.state = "stopped"
                if self._ends:
                    return None
                self._current = next((one for one in waiting if one.state == "waiting"), None)
                if self._current is not None:
                    self._current.state, self._current.line = "running", "loading the model"
                    return self._current
                if not self._unloads and self._changed.wait(_IDLE):
                    continue
            self._maker.unload()
            with self._changed:
                self._unloads = False
                if not self._ends and not any(one.state == "waiting" for one in self._all.values()):
                    self._changed.wait()

    def _end(self, preview: Preview, state: State, error: str = "") -> None:
        with self._changed:
            if preview.cancelled:
                state = "stopped"
            preview.state, preview.error, preview.line = state, error, ""
            if state == "done":
                preview.done = 1.0
                self._measured[preview.source, preview.form.settings, preview.form.runtime] = preview
                while len(self._measured) > 10 * _MOST_KEPT:
                    self._measured.popitem(last=False)
            else:
                shutil.rmtree(preview.folder, ignore_errors=True)
            ended = [one for one in self._all.values() if one.state not in ("waiting", "running")]
            while ended and (len(ended) > _MOST_KEPT or (len(ended) > 1 and _bytes(self._folder) > _MOST_BYTES)):
                oldest = ended.pop(0)
                del self._all[oldest.id]
                shutil.rmtree(oldest.folder, ignore_errors=True)

    def _is_stopping(self) -> bool:
        return self._ends or (self._current is not None and self._current.stopping())


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

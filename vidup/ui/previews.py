"""The queue of previews: which wait, which one is being made, which files of finished ones are kept."""

from __future__ import annotations

import logging
import secrets
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
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
    """All previews of a server, made one at a time in the order of their requests; `close` removes their files."""

    def __init__(self, films: Films, folder: Path) -> None:
        self._folder = folder
        self._all: OrderedDict[str, Preview] = OrderedDict()
        self._measured: OrderedDict[tuple[Path, vidup.Settings, vidup.Runtime], Preview] = OrderedDict()
        self._current: Preview | None = None
        self._ends = False
        self._lock = threading.Lock()
        self._maker = Maker(films, self._is_stopping)
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="previews", daemon=True)
        self._thread.start()

    def begin(self, source: Path, at: float, form: Form, kind: str) -> str:
        """Queue a preview at a time, in seconds; returns its id, raises ConfigError, Refused."""
        if kind not in ("frame", "moving"):
            raise ConfigError(f"kind = {str(kind)[:80]!r}: expected frame or moving")
        name = secrets.token_hex(8)
        with self._lock:
            if sum(one.state == "waiting" for one in self._all.values()) >= _MOST_WAITING:
                raise Refused(f"{_MOST_WAITING} previews are waiting; cancel some of them", 429)
            preview = Preview(name, source, at, form, kind, self._folder / name)  # type: ignore[arg-type]
            self._all[name] = preview
        self._tasks.put(partial(self._make, preview))
        return name

    def preload(self) -> None:
        """Load `mini` in the background."""

        def load() -> None:
            try:
                self._maker.preload()
            except Exception as error:  # a preview that needs it will report it
                log.debug("the small model: %s", error, exc_info=error)

        self._tasks.put(load)

    def find(self, name: str) -> Preview:
        """The preview with this id; raises Refused."""
        found = self._all.get(name)
        if found is None:
            raise Refused("there is no such preview any more", 404)
        found.asked = monotonic()
        return found

    def cancel(self, name: str) -> None:
        """Cancel a preview; an unknown id has no effect."""
        with self._lock:
            preview = self._all.get(name)
            if preview is not None and preview.state in ("waiting", "running"):
                preview.cancelled, preview.state = True, "stopped"

    def last_of(self, source: Path, form: Form) -> Preview | None:
        """The last finished preview of a file with these settings, for its time per frame."""
        return self._measured.get((source, form.settings, form.runtime))

    def unload(self) -> None:
        """Unload the model after the previews that wait, because a run needs the memory."""
        self._tasks.put(self._maker.unload)

    def close(self) -> None:
        """Cancel all previews and remove their files."""
        self._ends = True
        self._tasks.put(None)
        self._thread.join(10)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _work(self) -> None:
        while not self._ends:
            try:
                task = self._tasks.get(timeout=_IDLE)
            except Empty:
                task = self._maker.unload
            if task is not None:
                task()
        self._maker.unload()

    def _make(self, preview: Preview) -> None:
        with self._lock:
            if preview.stopping():
                preview.state = "stopped"
                return
            self._current = preview
            preview.state, preview.line = "running", "loading the model"
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

    def _end(self, preview: Preview, state: State, error: str = "") -> None:
        with self._lock:
            if preview.cancelled:
                state = "stopped"
            self._current = None
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

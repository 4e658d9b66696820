"""Plans of files, as ``vidup probe`` prints them."""

from __future__ import annotations

import os
import signal
import threading
from collections import OrderedDict
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vidup
from vidup.errors import VidupError
from vidup.ui import forms
from vidup.ui.films import Films, is_picture

if TYPE_CHECKING:
    from vidup.job.outlook import Plan

_PLANS = 12
_AT_ONCE = 0.2
"""Seconds to wait for the slow part."""
_OF_PICTURES = (
    *("model", "temporal", "trust", "refresh", "quantiser", "start", "duration", "end"),
    *("matrix", "range", "deinterlace", "fps", "bake_rotation", "tolerate_errors"),
)
"""Settings on which the slow part depends."""
_LATER = ("motion", "footage")
"""The facts of the slow part."""
_FILMS = Films()
"""Of the process that plans."""


class Looks:
    """Makes plans and caches the last few.

    To describe the footage and to estimate how much is carried takes seconds, and depends on few settings: that part is
    computed in the background.

    Args:
        apart: plan in a separate process, because loading a model changes torch's defaults for all threads.
    """

    def __init__(self, apart: bool) -> None:
        self._plans: OrderedDict[Any, Plan] = OrderedDict()
        self._seen: OrderedDict[Any, Future[Plan]] = OrderedDict()
        self._lock, self._apart = threading.Lock(), apart
        self._pool = self._begin()

    def _begin(self) -> Executor:
        if self._apart:
            return ProcessPoolExecutor(1, get_context("spawn"), _end_with_parent)
        return ThreadPoolExecutor(1, "looks")

    def preload(self) -> None:
        """Start the process that plans."""
        self._pool.submit(_preload)

    def plan(self, source: Path, form: forms.Form, output: Path | None) -> tuple[Plan, bool]:
        """The plan for a file, and whether the slow part is still missing; raises as `vidup.plan`."""
        facts, settings, runtime = source.stat(), form.settings, form.runtime
        file = source, facts.st_mtime_ns, facts.st_size
        key = *file, settings, runtime, output
        found = self._plans.get(key) or self._planned(source, output, settings, runtime)
        with self._lock:
            self._plans[key] = found
            while len(self._plans) > _PLANS:
                self._plans.popitem(last=False)
            if found.info is None:
                return found, False
            key = *file, *(getattr(settings, name) for name in _OF_PICTURES)
            if key not in self._seen:
                for other in self._seen.values():  # of earlier requests
                    other.cancel()
                self._seen[key] = self._pool.submit(_plan, source, None, settings, runtime, True)
                while len(self._seen) > _PLANS:
                    self._seen.popitem(last=False)
            waited = self._seen[key]
        try:
            seen = waited.result(_AT_ONCE)
        except TimeoutError:
            return found, True
        except (CancelledError, BrokenExecutor):  # started again by the next request
            with self._lock:
                self._seen.pop(key, None)
            return found, True
        except VidupError:  # a damaged film, which a preview reports
            return found, False
        own = dict(found.facts)
        both = ((head, text if head in _LATER else own.get(head, text)) for head, text in seen.facts)
        return replace(found, computed=seen.computed, facts=tuple(both)), False

    def _planned(self, source: Path, output: Path | None, settings: vidup.Settings, runtime: vidup.Runtime) -> Plan:
        try:
            return self._pool.submit(_plan, source, output, settings, runtime, False).result()
        except BrokenExecutor:  # the process was killed, perhaps because memory ran out
            with self._lock:
                self._pool = self._begin()
            return self._pool.submit(_plan, source, output, settings, runtime, False).result()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        _FILMS.close()


def _plan(source: Path, output: Path | None, settings: vidup.Settings, runtime: vidup.Runtime, pictures: bool) -> Plan:
    film = source if is_picture(source) else _FILMS.video(source, settings)
    return vidup.plan(film, output, settings, runtime, pictures=pictures)


def _preload() -> None:
    """Import what plans of diffusion models need, which takes longer than a plan."""
    vidup.Upscaler("mini", vidup.Runtime(device="cpu")).reset()


def _end_with_parent() -> None:
    """In the process that plans: ignore Ctrl-C, which is for the server, and exit when the server does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def as_json(found: Plan, form: forms.Form, estimate: float | None, more: bool) -> dict[str, Any]:
    """A plan for the page; `more`: its slow part is missing."""
    info, (height, width), exists = found.info, found.size, found.output.exists()
    return {
        "facts": [list(fact) for fact in found.facts],
        "plan": list(found.streams),
        "notes": [note.removeprefix("note: ") for note in found.notes],
        "duration": round(float(info.end * info.time_base - info.begin), 3) if info is not None else 0.0,
        "frames": found.frames,
        "rate": float(info.rate) if info is not None else 0.0,
        "width": info.width if info is not None else found.table["width"],
        "height": info.height if info is not None else found.table["height"],
        "result": [width, height],
        "output": str(found.output),
        "exists": exists,
        "command": forms.shown(form.arguments(found.input, found.output, overwrite=exists)),
        "estimate": estimate,
        "still": info is None,
        "more": more,
    }

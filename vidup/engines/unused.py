"""Settings that a model has no use for."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from vidup.config import Settings
from vidup.errors import EngineError

log = logging.getLogger(__name__)


def warn_unused(settings: Settings, model: str, absent: Iterable[str], unused: Iterable[str]) -> None:
    """Refuse, or warn of, settings that a model has no use for.

    Args:
        absent: parts that it does not have: to name one is an error.
        unused: what it does not read: a changed one is a warning.

    Raises:
        EngineError: a part is named that it does not have.
    """
    for name in absent:
        if getattr(settings, name) is not None:
            raise EngineError(f"{name} = {getattr(settings, name)!r}: {model} has no use for it; leave it out")
    plain = Settings()
    for name in unused:
        if getattr(settings, name) != getattr(plain, name):
            log.warning("%s = %r: has no effect with %s", name, getattr(settings, name), model)

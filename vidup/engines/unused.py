"""Report settings that have no effect with a model."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from vidup.config import Settings
from vidup.errors import EngineError

log = logging.getLogger(__name__)


def warn_unused(settings: Settings, model: str, absent: Iterable[str], unused: Iterable[str]) -> None:
    """Refuse settings, or warn of settings, that have no effect with a model.

    Args:
        absent: settings of parts that it does not have, which are errors.
        unused: settings that it does not use, which cause a warning if they are changed.

    Raises:
        EngineError: one of `absent` is set.
    """
    for name in absent:
        if getattr(settings, name) is not None:
            raise EngineError(f"{name} = {getattr(settings, name)!r}: {model} has no use for it; leave it out")
    plain = Settings()
    for name in unused:
        if getattr(settings, name) != getattr(plain, name):
            log.warning("%s = %r: has no effect with %s", name, getattr(settings, name), model)

"""Where files that can be made again are kept, per user. No torch here."""

from __future__ import annotations

import os
from pathlib import Path

from ...errors import InvalidInputError


def cache_dir() -> Path:
    """The folder for files that can be made again; it may not exist yet.

    $PPDMODEL_CACHE, or else `ppdmodel` in $XDG_CACHE_HOME (where that is absolute, as its
    standard wants) or in ~/.cache.

    Raises:
        InvalidInputError: none is set and there is no home.
    """
    ours, base = os.environ.get("PPDMODEL_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if ours:
        return Path(ours).absolute()
    if base and Path(base).is_absolute():
        return Path(base) / "ppdmodel"
    try:
        return Path.home() / ".cache" / "ppdmodel"
    except RuntimeError:
        raise InvalidInputError(
            "the cache must have a folder; got no home directory; set PPDMODEL_CACHE"
        ) from None

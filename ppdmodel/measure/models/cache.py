"""The user's cache folder, for files that can be regenerated. No torch here."""

from __future__ import annotations

import os
from pathlib import Path

from ...errors import InvalidInputError


def cache_dir() -> Path:
    """The cache folder; it may not exist yet.

    $PPDMODEL_CACHE, or else `ppdmodel` in $XDG_CACHE_HOME (if that is absolute, as its
    specification requires) or in ~/.cache.

    Raises:
        InvalidInputError: none is set and there is no home folder.
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

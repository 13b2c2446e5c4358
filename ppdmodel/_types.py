"""Types that annotations share; NumPy is imported for the type checker only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Floats: TypeAlias = "NDArray[np.floating[Any]]"
Ints: TypeAlias = "NDArray[np.integer[Any]]"
Bools: TypeAlias = "NDArray[np.bool_]"

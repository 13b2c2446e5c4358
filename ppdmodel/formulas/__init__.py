"""Closed forms and recursions, a module per subject; nothing else in the package holds a formula.

A formula enters `registry.FORMULAS` by the decorator above its definition, which is the only place
that its name stands in. A new module needs a line below.
"""

from typing import TYPE_CHECKING

from .correlation import *
from .decision import *
from .draft_tree import *
from .early_exit import *
from .gated import *
from .generation import *
from .linked import *
from .multi_exit import *
from .parallel import *
from .ppd import *
from .registry import FORMULAS
from .roofline import *
from .seconds import *
from .speculative import *

if not TYPE_CHECKING:  # type checkers read the modules; a list made at run time would hide all
    __all__ = list(FORMULAS)

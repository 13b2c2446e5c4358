"""All closed forms and recursions of the package, one module per subject.

The decorator above a formula registers it in `registry.FORMULAS`; its name is written nowhere else.
A new module needs an import line below.
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

if not TYPE_CHECKING:  # type checkers cannot read a list that is made at run time
    __all__ = list(FORMULAS)

"""Results as JSON, as a pandas DataFrame, and as an HTML table in a notebook."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from html import escape
from typing import TYPE_CHECKING, Any

from ..errors import visible
from .files import json_ready
from .intervals import IntervalEstimate

if TYPE_CHECKING:
    import pandas as pd


class Frame(ABC):
    """Base of a frozen dataclass whose rows make a table."""

    @abstractmethod
    def _rows(self) -> Sequence[Any]:
        """Dataclasses of one kind, a row each."""

    def to_json(self) -> str:
        """One JSON document; what is undefined or infinite is null."""
        return json.dumps(json_ready(self._document()), indent=2, ensure_ascii=False)

    def _document(self) -> dict[str, Any]:
        """The content of the JSON document."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    def to_frame(self) -> pd.DataFrame:
        """A row per setting or method; an interval takes the columns `x`, `x_low`, `x_high`."""
        import pandas as pd

        return pd.DataFrame([flat(row) for row in self._rows()])

    def _repr_html_(self) -> str:
        rows = [flat(row) for row in self._rows()]
        names = list(dict.fromkeys(name for row in rows for name in row))
        heads = "".join(f"<th>{escape(visible(name))}</th>" for name in names)
        body = "".join(
            "<tr>"
            + "".join(f"<td>{escape(visible(_shown(row.get(n))))}</td>" for n in names)
            + "</tr>"
            for row in rows
        )
        return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def flat(row: Any) -> dict[str, Any]:
    """A dataclass as one level of names and numbers."""
    found: dict[str, Any] = {}
    for field in fields(row):
        value = getattr(row, field.name)
        if isinstance(value, IntervalEstimate):
            found[field.name] = value.value
            found[f"{field.name}_low"], found[f"{field.name}_high"] = value.ci_low, value.ci_high
        elif isinstance(value, Mapping):
            found |= {f"{field.name}_{name}": item for name, item in value.items()}
        else:
            found[field.name] = value
    return found


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)

"""Figures: each function takes results or numbers, draws on `ax` if given, returns the figure."""

from __future__ import annotations

from .figures.canvas import FORMATS, save, style
from .figures.closed_forms import regime, theory
from .figures.compared import comparison, thresholds
from .figures.measured import match_rate, trade_off
from .figures.validated import predicted

__all__ = [
    "FORMATS",
    "comparison",
    "match_rate",
    "predicted",
    "regime",
    "save",
    "style",
    "theory",
    "thresholds",
    "trade_off",
]

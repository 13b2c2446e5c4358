"""Whether a calibration and a timing belong to what is about to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InvalidInputError
from ..measure.models.sources import ModelSource
from ..measure.training.train import TrainedExits
from ..results.calibration import Calibration
from ..results.timing import Timing
from .devices import machine


def check_fits(
    source: ModelSource,
    dtype: str,
    exits: TrainedExits | None,
    calibration: Calibration | None,
    timing: Timing | None,
    names: Sequence[str] = (),
) -> list[str]:
    """Refuse results of another model, type or kind of exit.

    Args:
        source: the model that is about to run.
        dtype: its type.
        exits: its trained exits, if any.
        calibration: match rates, if any.
        timing: costs, if any.
        names: the units' devices.

    Returns:
        Warnings: a timing of another machine is used, and labelled.

    Raises:
        InvalidInputError: a result is of another model, dtype or kind of exit.
    """
    kind = "trained" if exits else "logit"
    found = {}
    if calibration is not None:
        found["calibration"] = calibration.provenance.get("measurement", {})
    if timing is not None:
        found["timing"] = timing.provenance
    for name, about in found.items():
        _check(name, "model", about, "weights_sha256", list(source.weights_sha256))
        _check(name, "dtype", about, "dtype", dtype)
        _check(name, "exits", about, "exit_kind", kind)
        if exits is not None and "exits_sha256" in about:
            _check(name, "exits", about, "exits_sha256", exits.sha256)
    if timing is not None and timing.provenance["machine"] != machine(names):
        return [
            f"WARNING: the timing is of another machine ({timing.provenance['machine']}); "
            "predicted times are not for this one"
        ]
    return []


def _check(name: str, what: str, about: Mapping[str, Any], key: str, wanted: Any) -> None:
    got = about.get(key)
    if got != wanted:
        shown = about.get("model") if what == "model" else got
        raise InvalidInputError(
            f"the {name} must be of the same {what}; got {shown}; make one with the same {what}"
        )

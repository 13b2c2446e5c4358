"""Checks that results are compatible: provenances must agree in what determines the numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import InvalidInputError

if TYPE_CHECKING:
    from .calibration import Calibration
    from .measurement import Measurement
    from .timing import Timing

#: provenance that must agree in measurements that are fitted together
MATCH_RATE_KEYS = (
    "weights_sha256", "dtype", "exit_kind", "exits_sha256", "decoding", "temperature", "top_p",
    "ranks",
)  # fmt: skip
#: provenance that only a run with the model can know: SHA-256 of the token ids of all prompts
TOKEN_IDS = "token_ids_sha256"
#: most characters of a value in a message
MAX_SHOWN_CHARS = 200
#: provenance of a model whose weights are random numbers: which ones; absent from other results
RANDOM_WEIGHTS = "random_weights"
#: provenance that must agree between match rates, timings and a running model
MODEL_KEYS = ("weights_sha256", RANDOM_WEIGHTS, "dtype", "exit_kind", "exits_sha256")


def check_agree(
    found: Mapping[str, Any],
    expected: Mapping[str, Any],
    names: Iterable[str],
    *,
    rule: str,
    what: str,
    fix: str,
) -> None:
    """Refuse two provenances that differ.

    Args:
        found: provenance of a result.
        expected: provenance that it must agree with.
        names: keys that must agree; a key missing in both agrees.
        rule: what must hold, as the message begins.
        what: the result that `found` is of, as the message names it.
        fix: what to do, as the message ends.

    Raises:
        InvalidInputError: they differ; the message gives the keys and both values.
    """
    for name in names:
        if found.get(name) != expected.get(name):
            raise InvalidInputError(
                f"{rule}; got {what} with {name} {_shown(found, name)} instead of "
                f"{_shown(expected, name)}; {fix}"
            )


def check_texts(found: Mapping[str, Any], expected: Mapping[str, Any], what: str) -> None:
    """Refuse results of one list of prompts whose model read other token ids.

    A result that an earlier version made, without a fingerprint of them, passes.

    Raises:
        InvalidInputError: the fingerprints differ; the message names the likely causes.
    """
    if TOKEN_IDS in found and TOKEN_IDS in expected:
        check_agree(
            found,
            expected,
            [TOKEN_IDS],
            rule="the texts that the model reads must be the same in all parts",
            what=what,
            fix="a chat template that states the date gives other texts on another day, as does "
            "another tokenizer: measure all parts with one, on one day, or give the date by "
            "--template-arg",
        )


def check_not_random(
    found: Mapping[str, Any], expected: Mapping[str, Any], *, what: str, beside: str, fix: str
) -> None:
    """Refuse results of random weights beside those of a model's own, also of the same sizes.

    Args:
        found: provenance of a result.
        expected: provenance that it is to be used with.
        what: the result that `found` is of, as the message names it.
        beside: likewise, of `expected`.
        fix: what to do, as the message ends.

    Raises:
        InvalidInputError: one of them is of random weights, and the other is not.
    """
    if bool(found.get(RANDOM_WEIGHTS)) != bool(expected.get(RANDOM_WEIGHTS)):
        raise InvalidInputError(
            "results of random weights must not be mixed with those of a model; got "
            f"{what} of {found.get('model')} for {beside} of {expected.get('model')}; {fix}"
        )


def _shown(about: Mapping[str, Any], name: str) -> str:
    """A value as shown in messages; the hash of weights with the name of their model."""
    model = f" ({about['model']})" if name == "weights_sha256" and "model" in about else ""
    text = repr(about.get(name))
    return (text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}...") + model


def check_together(measurements: Sequence[Measurement]) -> None:
    """Refuse measurements that cannot be fitted together.

    Raises:
        InvalidInputError: there is none, they are of different models, exits or decoding, or two
            have a prompt in common.
    """
    if not measurements:
        raise InvalidInputError("a fit needs a measurement; got none; measure one")
    seen: set[str] = set()
    for number, one in enumerate(measurements, start=1):
        check_agree(
            one.provenance,
            measurements[0].provenance,
            MATCH_RATE_KEYS,
            rule="measurements that are fitted together must be of one model and setting",
            what=f"measurement {number}",
            fix="fit them apart",
        )
        twice = seen.intersection(one.prompt_ids)
        if twice:
            raise InvalidInputError(
                f"a prompt must be in one measurement only; got {min(twice)!r} twice; merge shards "
                "with: ppdmodel merge"
            )
        seen.update(one.prompt_ids)


def check_timing(timing: Timing, measured: Mapping[str, Any], layers: int) -> None:
    """Refuse a timing of another model, number type or kind of exit than was measured.

    Args:
        timing: costs of a model on one machine.
        measured: provenance of the match rates that it is to be used with.
        layers: decoder layers of the measured model.

    Raises:
        InvalidInputError: they differ.
    """
    fix = "time the model that was measured"
    check_not_random(timing.provenance, measured, what="a timing", beside="match rates", fix=fix)
    check_agree(
        {**timing.provenance, "layers": timing.layers},
        {**measured, "layers": layers},
        ("layers", *MODEL_KEYS),
        rule="the timing must be of the measured model",
        what="a timing",
        fix=fix,
    )


def check_runs(
    running: Mapping[str, Any], calibration: Calibration | None, timing: Timing | None
) -> list[str]:
    """Refuse results of another model, number type or kind of exit than is about to run.

    Args:
        running: `model`, `weights_sha256`, `random_weights` where they are, `dtype`, `exit_kind`,
            `exits_sha256` and `machine`.
        calibration: match rates, if any.
        timing: costs, if any.

    Returns:
        Warnings: a timing of another machine is allowed, with a warning.

    Raises:
        InvalidInputError: a result differs.
    """
    results: dict[str, Mapping[str, Any]] = {}
    if calibration is not None:
        results["calibration"] = calibration.measured
    if timing is not None:
        results["timing"] = timing.provenance
    for kind, about in results.items():
        check_not_random(about, running, what=f"a {kind}", beside="a run", fix="make one of these")
        check_agree(
            about,
            running,
            MODEL_KEYS,
            rule=f"the {kind} must be of the model, number type and exits that run",
            what=f"a {kind}",
            fix="make one of these",
        )
    if timing is None or timing.machine == running["machine"]:
        return []
    return [
        f"WARNING: the timing is of another machine ({timing.machine}); predicted times are not "
        "for this one"
    ]

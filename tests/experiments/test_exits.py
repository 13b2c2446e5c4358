"""Trained exits beside the logit exit, on made-up measurements of the same tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from experiments import exits
from ppdmodel.results.measurement import Measurement


def trained(measurement: Measurement, n_tokens: int) -> Measurement:
    """The same tokens with ranks that are better by one, and never worse than the first."""
    about = {"n_tokens": n_tokens, "n_prompts": 9}
    return replace(
        measurement,
        rank=np.maximum(measurement.rank - 1, 1),
        provenance={**measurement.provenance, "exits": about},
    )


def test_rates_and_their_paired_gain(measurement: Measurement) -> None:
    rows = exits.compared(measurement, trained(measurement, 500))
    assert [row["exit_layer"] for row in rows[::4]] == [2, 3, 4, 5]
    assert [row["k"] for row in rows[:4]] == [1, 3, 5, 10]
    for row in rows:
        assert (row["training_tokens"], row["training_prompts"]) == (500, 9)
        column = measurement.rank[:, row["exit_layer"] - 1]
        before, after = (column <= row["k"]).mean(), (column <= row["k"] + 1).mean()
        for name, rate in (("logit", before), ("trained", after), ("gain", after - before)):
            value, low, high = row[name]
            assert value == pytest.approx(rate, abs=5e-5)
            assert low <= value <= high


def test_other_tokens_are_refused(measurement: Measurement) -> None:
    other = replace(trained(measurement, 500), token_id=measurement.token_id + 1)
    with pytest.raises(AssertionError):
        exits.compared(measurement, other)


def test_a_table_by_training_tokens(measurement: Measurement) -> None:
    rows = exits.compared(measurement, trained(measurement, 500))
    rows += [row | {"training_tokens": 90, "trained": [0.5, 0.25, 0.75]} for row in rows]
    rows.sort(key=lambda row: row["training_tokens"])
    lines = exits.table({"rows": rows}).splitlines()
    assert lines[0] == "| exit layer | logit exit | 90 tokens | 500 tokens |"
    assert lines[1] == "|---|---|---|---|"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| 2", "| 3", "| 4", "| 5"]
    assert all(" | 0.500 [0.250, 0.750] | " in line for line in lines[2:])
    first = next(row for row in rows if (row["exit_layer"], row["k"]) == (2, 5))
    assert f"| {first['logit'][0]:.3f} [" in lines[2]


def test_intervals_are_made_again_where_the_measurement_is_there(measurement: Measurement) -> None:
    rows = exits.compared(measurement, trained(measurement, 500))
    wide = [0.5, 0.25, 0.75]
    old = [row | {"logit": wide, "trained": wide} for row in rows]
    found = exits.remade({"made_by": "it", "rows": old}, measurement, trained(measurement, 500))
    assert found == {"rows": rows, "made_by": "it"}
    both = {"made_by": "it", "rows": old + [row | {"training_tokens": 90} for row in old]}
    found = exits.remade(both, measurement, trained(measurement, 500))
    kept = found["rows"][len(rows) :]
    assert found["rows"][: len(rows)] == rows
    assert [row["logit"] for row in kept] == [row["logit"] for row in rows]
    assert all((row["training_tokens"], row["trained"]) == (90, wide) for row in kept)
    assert "not widened, of rates and gains of exits with fewer than 500 tokens" in found["kept"]

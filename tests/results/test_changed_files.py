"""Any one value of a result file changed: refused with the file's name, or read as it stands."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppdmodel import fit, load, save
from ppdmodel.errors import InvalidInputError
from tests.conftest import make_measurement
from tests.pipeline.test_prediction_error import a_timing

#: what a field may be changed to, beside a value near its own
OTHERS = st.sampled_from(
    [None, True, "", "1", -1, 0, 0.5, 1, 7, 1e-300, 1e300, math.nan, math.inf, 10**30, 2**63, [],
     [0], [[1]], {}, {"value": 1}]
)  # fmt: skip
KINDS = ("calibration", "timing", "summary")


@cache
def document(kind: str) -> tuple[str, list[tuple[Any, ...]]]:
    """The text of a result's file, and the places of its values."""
    measured = make_measurement(prompts=4, tokens=6, layers=3)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result"
        if kind == "calibration":
            save(fit(measured, k_max=2, family="rank tail", resamples=40), path)
        elif kind == "timing":
            save(a_timing(), path)
        else:
            save(measured, path)
            path /= "summary.json"
        text = path.read_text("utf-8")
    return text, list(places(json.loads(text)))


def places(value: Any, *above: Any) -> Iterator[tuple[Any, ...]]:
    """Where a document has values: the names and numbers that lead to each."""
    yield from [above] if above else []
    if isinstance(value, (dict, list)):
        for name in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[name], *above, name)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A measurement's folder, whose summary is written anew for each case."""
    folder = tmp_path_factory.mktemp("changed") / "m"
    save(make_measurement(prompts=4, tokens=6, layers=3), folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_a_changed_value_is_refused_by_name_or_read(
    measured: Path, kind: str, data: st.DataObject
) -> None:
    text, found = document(kind)
    changed = json.loads(text)
    # a field of the document first, since most places are in its largest table
    name = data.draw(st.sampled_from(sorted({place[0] for place in found})))
    *above, last = data.draw(st.sampled_from([place for place in found if place[0] == name]))
    inner = changed
    for step in above:
        inner = inner[step]
    if data.draw(st.booleans(), "removed"):
        del inner[last]
    else:
        inner[last] = data.draw(OTHERS)
    path = measured / "summary.json" if kind == "summary" else measured.parent / "result.json"
    path.write_text(json.dumps(changed), encoding="utf-8")
    try:
        load(path.parent if kind == "summary" else path)
    except InvalidInputError as error:
        message = str(error)
        assert str(path) in message or str(path.parent) in message
        assert "\n" not in message

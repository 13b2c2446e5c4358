"""The page as a file: its size, its safety, what it looks like on small and dark screens."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ppdmodel as ppd
from ppdmodel.cli import run

from .conftest import Open

HOSTILE = (
    "</script><script>window.broken=1</script><img src=x onerror='window.broken=1'>&amp;$style"
)


def test_the_page_is_small_and_refers_to_nothing(plain: str) -> None:
    assert len(plain.encode()) < 300_000
    addresses = set(re.findall(r"https?://[^\s\"'`<>]+", plain))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, not a place
    assert "default-src 'none'" in plain


def test_a_page_of_a_deep_model_stays_small(calibration: ppd.Calibration) -> None:
    exits = np.arange(90) // 3
    deep = replace(
        calibration,
        layers=90,
        hits=calibration.hits[:, exits],
        p_correct=calibration.p_correct[exits],
        ci_low=calibration.ci_low[exits],
        ci_high=calibration.ci_high[exits],
    )
    page = ppd.explore(deep)
    assert len(page.encode()) < 600_000


def test_hostile_names_are_text(open_page: Open, calibration: ppd.Calibration) -> None:
    hostile = replace(calibration, model=HOSTILE)
    page = open_page(ppd.explore(hostile, calibration))
    assert page.evaluate("window.broken") is None
    assert page.locator("img").count() == 0
    assert HOSTILE in page.locator("#source").inner_text()
    assert HOSTILE in page.locator("#result option").first.inner_text()


def test_a_measurement_folder_and_one_prompt(open_page: Open, measurement: ppd.Measurement) -> None:
    page = open_page(ppd.explore(measurement))
    assert f"{measurement.n_tokens} tokens of" in page.locator("#source").inner_text()
    first = measurement.prompt_index == 0
    single = replace(
        measurement,
        prompt_ids=measurement.prompt_ids[:1],
        **{
            n: getattr(measurement, n)[first]
            for n in ("prompt_index", "position", "token_id", "rank", "top_prob")
        },
    )
    page = open_page(ppd.explore(single))
    assert "no interval can be given" in page.locator("#source").inner_text()


def test_settings_that_were_not_counted_are_not_shown(
    open_page: Open, calibration: ppd.Calibration
) -> None:
    some = replace(calibration, exit_layers=(10, 20, 25), ks=(1, 4))
    page = open_page(ppd.explore(some))
    found = page.evaluate("measuredSettings(RESULTS[0], 1, 0).map((s) => [s.exit, s.k])")
    assert found == [[e, k] for e in (10, 20, 25) for k in (1, 4)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_without_scrolling_sideways(
    open_page: Open, measured: str, scheme: str
) -> None:
    page = open_page(measured, color_scheme=scheme)
    page.set_viewport_size({"width": 360, "height": 740})
    page.wait_for_timeout(100)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    sizes = page.evaluate(
        "[...document.querySelectorAll('svg text')].map((t) => t.getBoundingClientRect().height)"
    )
    assert min(sizes) > 8
    colors = """[document.body, document.querySelector('.hint')].map((e) =>
      [getComputedStyle(document.body).backgroundColor, getComputedStyle(e).color])"""
    assert all(contrast(*pair) >= 4.5 for pair in page.evaluate(colors))


def contrast(one: str, other: str) -> float:
    """The ratio of two colours' luminance, as WCAG 2 defines it."""

    def luminance(color: str) -> float:
        channels = [int(n) / 255 for n in re.findall(r"\d+", color)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    dark, bright = sorted([luminance(one), luminance(other)])
    return (bright + 0.05) / (dark + 0.05)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = Path(__file__).parents[2] / "data", tmp_path / "page.html"
    both = [str(data / f"smollm2-135m{kind}.calibration.json") for kind in ("", "-trained")]
    assert run(["explore", *both, "-o", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"out": str(out), "bytes": out.stat().st_size, "results": 2}
    assert run(["explore", str(tmp_path / "none.json"), "-o", str(out)]) == 2
    assert "error: " in capsys.readouterr().err
    assert run(["explore", "-o", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "must be a file; got a folder" in error

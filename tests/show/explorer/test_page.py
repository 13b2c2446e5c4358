"""The page as a file: its size, its safety, what it looks like on small and dark screens."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ppdmodel as ppd
from ppdmodel.cli import run
from ppdmodel.errors import InvalidInputError, visible
from tests.show.explorer.conftest import Open, until

HOSTILE = (
    "</script><script>window.broken=1</script><img src=x onerror='window.broken=1'>&amp;$style",
    "<!--<script>window.broken=1",
    "a\u2028window.broken=1\u2029b",
    "\"'`;window.broken=1;${window.broken=1} $$ ${policy} \\",
    "\\u003c/script>]]>&lt;b>",
    "<b>" + "long" * 2000,
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


def test_hostile_names_are_text(open_page: Open, measurement: ppd.Measurement) -> None:
    """In the list, in the words about the chosen one, and in a comment of the copied Python."""
    abouts = [{**measurement.provenance, "model": name} for name in HOSTILE]
    named = [replace(measurement, provenance=about) for about in abouts]
    page = open_page(ppd.explore(*named, measurement))
    options = page.locator("#result option").all_text_contents()
    for number, name in enumerate(HOSTILE):
        assert visible(name) in options[number]
        page.locator("#result").select_option(str(number))
        source = "document.getElementById('source').textContent"
        until(page, f"{source}.includes({json.dumps(visible(name))})")
        code = page.evaluate("asPython(state)")
        assert code.startswith("# p_correct as measured on ")
        assert ast.dump(ast.parse(code)) == ast.dump(ast.parse(code.partition("\n")[2]))
    assert page.evaluate("window.broken") is None
    assert page.locator("img, main b, label b").count() == 0


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


@pytest.mark.parametrize(
    "address",
    [
        "#p=0.7&d=300&e=1&k=32&D=inf", "#p=0.5&d=205&e=3&k=400&D=inf", "#p=1&d=1&e=1&n=1",
        "#p=0&d=40&e=20&o=1000&n=2000", "#p=0.7&d=1000&e=1&k=32&D=4&n=2000",
    ],
)  # fmt: skip
def test_extreme_settings_are_drawn_whole(open_page: Open, plain: str, address: str) -> None:
    page = open_page(plain, address)
    assert page.locator("#trade svg").count() == page.locator("#total svg").count() == 1
    for text in page.locator("#verdict, #numbers").all_inner_texts():
        assert not re.search("NaN|Infinity|undefined", text)
    bad = """[...document.querySelectorAll('svg *')].some((e) =>
      [...e.attributes].some((a) => /NaN|Infinity|undefined/.test(a.value)))"""
    assert not page.evaluate(bad)


def test_one_possible_total_is_drawn_where_it_is(open_page: Open, plain: str) -> None:
    page = open_page(plain, "#p=0&d=40&e=20&n=257")
    titles = page.evaluate(
        "[...document.querySelectorAll('#total .bar title')].map(t => t.textContent)"
    )
    assert titles == ["10280: 1.0e+2%"]


def test_a_page_in_a_frame_works_without_an_address(open_page: Open, plain: str) -> None:
    page = open_page(plain)
    page.evaluate(
        """(text) => { const frame = document.createElement('iframe'); frame.id = 'inner';
        frame.sandbox = 'allow-scripts'; frame.srcdoc = text; document.body.append(frame); }""",
        plain,
    )
    inner = page.frame_locator("#inner")
    inner.locator("#k").fill("5")
    inner.locator("#k").press("Enter")
    inner.locator("#verdict", has_text="takes").wait_for()
    page.wait_for_timeout(400)
    assert inner.locator("#numbers").inner_text().count("\n") > 10


def test_a_long_name_does_not_widen_the_page(open_page: Open, calibration: ppd.Calibration) -> None:
    page = open_page(ppd.explore(replace(calibration, model="A" * 400)))
    for width in (360, 1280):
        page.set_viewport_size({"width": width, "height": 700})
        page.wait_for_timeout(100)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_too_many_layers_are_refused(calibration: ppd.Calibration) -> None:
    with pytest.raises(InvalidInputError, match="at most 1000 layers; got 1001"):
        ppd.explore(replace(calibration, layers=1001))


def test_a_strange_provenance_is_no_reason_to_fail(calibration: ppd.Calibration) -> None:
    odd: list[Any] = [[], {"decoding": "sampled"}, {"decoding": "sampled", "temperature": "hot"}]
    for measured in odd:
        strange = replace(calibration, provenance={"measurement": measured})
        assert calibration.model in ppd.explore(strange)


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
    data, out = Path(__file__).parents[3] / "data", tmp_path / "page.html"
    both = [str(data / f"smollm2-135m{kind}.calibration.json") for kind in ("", "-trained")]
    assert run(["explore", *both, "-o", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"out": str(out), "bytes": out.stat().st_size, "results": 2}
    assert run(["explore", str(tmp_path / "none.json"), "-o", str(out)]) == 2
    assert "error: " in capsys.readouterr().err
    assert run(["explore", "-o", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "must be a file; got a folder" in error


def test_a_page_is_not_written_over_a_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], calibration: ppd.Calibration
) -> None:
    kept = tmp_path / "keep.json"
    ppd.save(calibration, kept)
    before = kept.read_bytes()
    assert run(["explore", str(kept), "-o", str(tmp_path / "." / "keep.json")]) == 2
    assert "must not be written over a RESULT" in capsys.readouterr().err
    assert kept.read_bytes() == before

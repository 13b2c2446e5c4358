"""Every control of the page, by mouse and by keyboard, and what leaves the page."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from typing import Any

import pytest

import ppdmodel as ppd
from ppdmodel.cli import run
from tests.show.explorer.conftest import Open, until

SLIDERS = {
    "p": "p", "layers": "layers", "exit": "exit", "k": "k", "tokens": "tokens",
    "overhead": "overhead", "budget": "budget", "time": "time",
}  # fmt: skip
NUMBERS = {"p": 0.25, "layers": 33, "exit": 7, "k": 5, "tokens": 99, "overhead": 1.5, "ms": 2.5}
COSTS = {
    "head_time": 6, "exit_time": 2, "token_time": 0.5, "start_delay": 0.1, "promotion_delay": 0.2,
    "busy_layer_time": 1.1, "batch_layer_time": 1.8,
}  # fmt: skip
BUTTONS = ["play", "to-best", "copy-command", "copy-python", "copy-csv", "again", "hit-0"]


def drawn(page: Any) -> None:
    """Wait for the frame in which the page draws what it was told."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")


def state(page: Any) -> dict[str, Any]:
    drawn(page)
    found: dict[str, Any] = page.evaluate("state")
    return found


def slider(name: str) -> str:
    return "#time" if name == "time" else f"#{name}-range"


def give(page: Any, name: str, value: object) -> None:
    """Type into a number box, leave it, and see the answer drawn."""
    page.locator(f"#{name}").fill(str(value))
    page.locator(f"#{name}").press("Enter")
    drawn(page)


def test_no_control_is_left_out(open_page: Open, measured: str) -> None:
    page = open_page(measured)
    page.locator("summary").click()
    there = set(
        page.evaluate("[...document.querySelectorAll('input,select,button')].map(c => c.id)")
    )
    tested = {slider(n)[1:] for n in SLIDERS} | set(NUMBERS) | set(COSTS) | set(BUTTONS)
    tested |= {"budget", "depth", "result", "measured"} | {f"hit-{i}" for i in range(7)}
    assert there == tested
    labelled = "every(c => c.labels.length || c.ariaLabel)"
    assert page.evaluate(f"[...document.querySelectorAll('input,select,textarea')].{labelled}")


def test_the_tab_key_reaches_every_control(open_page: Open, measured: str) -> None:
    page = open_page(measured)
    page.locator("summary").click()
    wanted = page.evaluate(
        "[...document.querySelectorAll('input,select,button,textarea')]"
        ".filter(c => !c.disabled).map(c => c.id)"
    )
    page.evaluate("document.activeElement.blur()")
    seen = set()
    for _ in range(len(wanted) + 6):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.id"))
    assert set(wanted) <= seen


@pytest.mark.parametrize("name", SLIDERS)
def test_a_slider_by_mouse_and_keyboard(
    open_page: Open, plain: str, measured: str, name: str
) -> None:
    page = open_page(measured if name == "budget" else plain)
    target = page.locator(slider(name))
    before = state(page)[SLIDERS[name]]
    target.focus()
    page.keyboard.press("ArrowRight")
    pressed = state(page)[SLIDERS[name]]
    assert pressed > before
    box = target.bounding_box()
    target.click(position={"x": 0.9 * box["width"], "y": box["height"] / 2})
    clicked = state(page)[SLIDERS[name]]
    assert clicked > pressed
    page.keyboard.press("Home")
    assert state(page)[SLIDERS[name]] == float(target.get_attribute("min"))


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_typed(open_page: Open, plain: str, name: str) -> None:
    page = open_page(plain)
    page.locator(f"#{name}").click()
    page.keyboard.press("Control+a")
    page.keyboard.type(str(NUMBERS[name]))
    page.keyboard.press("Tab")
    assert state(page)[name] == NUMBERS[name]
    if name == "ms":
        assert "65.0 ms" in page.locator("#numbers").inner_text()  # 26 layer times


@pytest.mark.parametrize("text", ["", "-1", "abc", "1e9", "2.5"])
def test_nonsense_in_a_number_is_said_and_put_back(open_page: Open, plain: str, text: str) -> None:
    page = open_page(plain)
    page.locator("summary").click()
    give(page, "ms", 3)
    before = state(page)
    for name in ("layers", "exit", "k", "tokens", "p", "ms", "exit_time"):
        if text == "2.5" and name in ("ms", "exit_time"):
            continue
        page.locator(f"#{name}").click()
        shown = page.locator(f"#{name}").input_value()
        page.keyboard.press("Control+a")
        page.keyboard.press("Delete")
        page.keyboard.insert_text(text)
        page.keyboard.press("Tab")
        after = state(page)
        if name == "ms" and text in ("", "abc", "1e9"):  # no time is known; a long one
            give(page, "ms", 3)
            continue
        assert page.locator(f"#{name}").input_value() == shown
        assert page.locator("#refused").inner_text()
        assert after == before


def test_digits_on_the_way_to_a_number_change_nothing(open_page: Open, plain: str) -> None:
    page = open_page(plain, "#d=40&e=40")
    page.locator("#layers").click()
    page.keyboard.press("Control+a")
    page.keyboard.type("80")
    assert state(page)["layers"] == 40
    page.keyboard.press("Enter")
    found = state(page)
    assert (found["layers"], found["exit"]) == (80, 40)


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
def test_costs_change_the_answer(open_page: Open, plain: str, by: str) -> None:
    page = open_page(plain)
    if by == "mouse":
        page.locator("summary").click()
    else:
        page.locator("summary").focus()
        page.keyboard.press("Enter")
    give(page, "exit", 30)
    for name, value in COSTS.items():
        give(page, name, value)
    found = state(page)
    assert found["costs"] == COSTS
    times = {name: float(cost) for name, cost in COSTS.items()}
    speedup = ppd.calibrated_speedup(0.7, 40, 30, 1.0, plain_head_time=6.0, **times)
    assert f"With the costs: speed-up\t{speedup:.2f}" in page.locator("#numbers").inner_text()
    give(page, "exit", 5)
    assert "they need a later exit" in page.locator("#numbers").inner_text()
    page.locator("#depth").select_option("2")
    drawn(page)
    assert "they need depth 1" in page.locator("#numbers").inner_text()


def test_the_depth_and_the_data_are_chosen(open_page: Open, measured: str) -> None:
    page = open_page(measured)
    page.locator("#depth").focus()
    page.keyboard.press("ArrowDown")
    assert state(page)["depth"] == 2
    page.locator("#depth").select_option("inf")
    assert state(page)["depth"] is None
    page.locator("#result").select_option("")
    found = state(page)
    assert (found["result"], found["measured"]) == (None, False)
    assert not page.locator("#rates-box").is_visible()
    page.locator("#result").focus()
    page.keyboard.press("ArrowUp")
    found = state(page)
    assert (found["result"], found["layers"], found["measured"]) == (0, 30, True)


def test_a_measured_rate_can_be_left_and_taken_again(
    open_page: Open, measured: str, calibration: ppd.Calibration
) -> None:
    page = open_page(measured)
    start = state(page)
    assert start["p"] == pytest.approx(calibration.p_correct[start["exit"] - 1, start["k"] - 1])
    give(page, "p", 0.9)
    assert not state(page)["measured"]
    assert "95% interval" not in page.locator("#verdict").inner_text()
    page.locator("#measured").focus()
    page.keyboard.press("Space")
    assert state(page)["p"] == start["p"]
    assert "95% interval" in page.locator("#verdict").inner_text()
    page.locator("#measured").click()
    assert not state(page)["measured"]
    give(page, "exit", 3)
    page.locator("#to-best").click()
    found = state(page)
    assert {n: found[n] for n in ("exit", "k", "measured")} == {
        n: start[n] for n in ("exit", "k", "measured")
    }


def test_the_wish_for_the_measured_rate_outlives_a_k_without_one(
    open_page: Open, measured: str
) -> None:
    page = open_page(measured)
    before = state(page)
    give(page, "k", 40)
    assert "none for this exit and k" in page.locator("#measured-words").inner_text()
    assert "95% interval" not in page.locator("#verdict").inner_text()
    give(page, "k", before["k"])
    assert state(page)["p"] == before["p"]


def test_dots_lead_to_their_settings(open_page: Open, measured: str) -> None:
    page = open_page(measured)
    page.locator("#rates .pressable").nth(24).click()
    assert state(page)["exit"] == 25
    page.locator("#trade .pressable").first.dispatch_event("click")
    found = state(page)
    assert (found["exit"], found["k"], found["measured"]) == (1, 1, True)


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
def test_matches_are_turned_and_drawn_anew(open_page: Open, plain: str, by: str) -> None:
    page = open_page(plain)

    def press(name: str) -> None:
        if by == "mouse":
            page.locator(name).click()
        else:
            page.locator(name).focus()
            page.keyboard.press("Enter")

    before = page.evaluate("pattern(state)")
    press("#hit-2")
    assert state(page)["flips"] == 4
    after = page.evaluate("pattern(state)")
    assert [a != b for a, b in zip(before, after, strict=True)] == [i == 2 for i in range(7)]
    assert page.locator("#hit-2").get_attribute("aria-pressed") == str(after[2]).lower()
    if by == "keyboard":
        assert page.evaluate("document.activeElement.id") == "hit-2"
    press("#again")
    assert state(page)["flips"] == 0


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
def test_the_pipeline_plays_and_stops(open_page: Open, plain: str, by: str) -> None:
    page = open_page(plain)

    def press() -> None:
        if by == "mouse":
            page.locator("#play").click()
        else:
            page.locator("#play").focus()
            page.keyboard.press("Space")

    press()
    assert page.locator("#play").inner_text() == "Pause"
    until(page, "Number(document.getElementById('time').value) > 35")
    press()
    assert page.locator("#play").inner_text() == "Play"
    stopped = state(page)["time"]
    page.wait_for_timeout(100)
    assert state(page)["time"] == stopped


def test_matches_and_time_can_be_changed_while_it_plays(open_page: Open, plain: str) -> None:
    page = open_page(plain)
    page.locator("#play").click()
    page.locator("#hit-5").click()
    assert state(page)["flips"] == 32
    page.locator("#time").focus()
    page.keyboard.press("End")
    assert page.locator("#play").inner_text() == "Play"
    assert state(page)["time"] == float(page.locator("#time").get_attribute("max"))


def test_the_words_under_the_pipeline_say_what_runs(open_page: Open, plain: str) -> None:
    page = open_page(plain, "#p=1&d=10&e=5&k=3&D=1&t=7")
    assert page.locator("#now li").all_inner_texts() == [
        "token 1 runs layer 8 of 10",
        "the right guess for token 2 runs layer 3, not yet known to be right",
        "2 wrong processes run layer 3 for token 2",
    ]


def test_the_address_keeps_the_state(open_page: Open, measured: str) -> None:
    page = open_page(measured)
    give(page, "tokens", 77)
    give(page, "k", 4)
    page.locator("#depth").select_option("3")
    page.locator("#hit-4").click()
    kept, words = state(page), page.locator("#verdict").inner_text()
    until(page, "location.hash === toAddress(state)")
    address = "#" + page.url.partition("#")[2]
    again = open_page(measured, address)
    assert state(again) == kept
    assert again.locator("#verdict").inner_text() == words


@pytest.mark.parametrize(
    "address",
    ["#", "#p=nan&d=-5&e=1e99&k=x", "#d=3&e=9&D=7&n=1e9", "#r=99&m=1&c=1_2_x_-4", "#%00<script>"],
)
def test_nonsense_in_the_address_gives_a_sound_page(
    open_page: Open, plain: str, address: str
) -> None:
    found = state(open_page(plain, address))
    assert 0 <= found["p"] <= 1
    assert 1 <= found["exit"] <= found["layers"] <= 1000
    assert found["depth"] in (1, 2, 3, 4, None)
    assert all(cost >= 0 for cost in found["costs"].values())


@pytest.mark.parametrize("address", ["#r=length", "#r=__proto__", "#r=0.5", "#r=-1", "#p=&d=&m=1"])
def test_nonsense_for_a_result_gives_a_sound_page(
    open_page: Open, measured: str, address: str
) -> None:
    found = state(open_page(measured, address))
    assert 1 <= found["exit"] <= found["layers"]


def copied(page: Any, button: str, by: str) -> str:
    page.evaluate("document.getElementById('copy-status').textContent = ''")
    if by == "mouse":
        page.locator(f"#copy-{button}").click()
    else:
        page.locator(f"#copy-{button}").focus()
        page.keyboard.press("Enter")
    until(page, "document.getElementById('copy-status').textContent !== ''")
    return str(page.locator("#copied").input_value())


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
def test_the_copied_command_and_python_say_the_same(
    open_page: Open, plain: str, capsys: pytest.CaptureFixture[str], by: str
) -> None:
    page = open_page(
        plain,
        "#p=0.61&d=36&e=8&k=2&D=2&n=50&o=0.5&ms=4",
        permissions=["clipboard-read", "clipboard-write"],
    )
    numbers = page.evaluate("quantities(state)")
    command = copied(page, "command", by)
    assert page.evaluate("navigator.clipboard.readText()") == command
    assert "Copied as command" in page.locator("#copy-status").inner_text()
    assert run([*command.split()[1:], "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    for name, value in numbers.items():
        if name in said:
            assert said[name] == pytest.approx(value, rel=1e-9)
    assert said["latency_per_token_s"] == pytest.approx(0.004 * numbers["latency_per_token"])
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(copied(page, "python", by), {})
    latency, compute, late = map(float, printed.getvalue().split())
    assert latency == pytest.approx(numbers["latency_per_token"])
    assert compute == pytest.approx(numbers["compute_per_token"])
    assert late == said["total_latency"]["p95"]


def test_copied_python_has_the_costs(open_page: Open, plain: str) -> None:
    page = open_page(plain, "#p=0.6&d=30&e=20&k=3&c=6_2_0.5_0.1_0.2_1.1_1.8")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(copied(page, "python", "mouse"), {})
    speedup = float(printed.getvalue().split()[-1])
    assert speedup == pytest.approx(page.evaluate("withCosts(state).speedup"), rel=1e-12)
    copied(page, "command", "mouse")
    assert page.locator("#copy-status").inner_text().endswith("without the costs")


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
def test_the_copied_csv_has_every_setting(
    open_page: Open, plain: str, measured: str, calibration: ppd.Calibration, by: str
) -> None:
    rows = list(csv.DictReader(io.StringIO(copied(open_page(plain), "csv", by))))
    assert [int(row["exit_layer"]) for row in rows] == list(range(1, 41))
    for row in rows[:-1]:
        expected = ppd.estimate(0.7, 40, int(row["exit_layer"]), 3)
        assert float(row["exchange_rate"]) == pytest.approx(expected["exchange_rate"])
    rows = list(csv.DictReader(io.StringIO(copied(open_page(measured), "csv", by))))
    assert len(rows) == 29 * calibration.k_max
    row = next(r for r in rows if (r["exit_layer"], r["k"]) == ("20", "5"))
    assert float(row["p_correct"]) == calibration.p_correct[19, 4]
    assert float(row["p_low"]) == pytest.approx(calibration.ci_low[19, 4])

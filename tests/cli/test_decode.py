"""`ppdmodel decode`: what is refused before a model is loaded; runs are in tests/pipeline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ppdmodel.cli.decode import overview, render
from ppdmodel.pipeline.decoding import Decoded, Difference, Rival, Speed
from tests.support.commands import DATA, refused

FAST, SLOW, PLAIN = (Speed(t, t, t) for t in (0.009, 0.0125, 0.010))
DECODED = Decoded(
    token_ids=(5, 6, 7, 8),
    text="word",
    n_trials=8,
    n_matched=4,
    n_late=1,
    latency=FAST,
    greedy=PLAIN,
    greedy_same_units=SLOW,
    predicted_right_rate=0.625,
    predicted_match_rate=0.75,
    predicted_latency_per_token_s=0.008,
    difference=None,
)


def test_what_was_run_and_what_was_predicted(capsys: pytest.CaptureFixture[str]) -> None:
    render(DECODED, Path("trace.json"), row_by_row=False)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for line in (
        "PPD 9.0 9.0 9.0",
        "PPD, as predicted 8.0",
        "guesses of 8 tokens: 4 right and in time, 1 right but late, 3 wrong",
        "match rate (right and in time) 0.500; predicted 0.750",
        "right guesses, late ones too 0.625; predicted 0.625",
        "4 tokens, the same as plain decoding's",
        "trace, for ui.perfetto.dev: trace.json",
        "plain decoding, tensor parallel 12.5 12.5 12.5",
        "PPD is 1.11 times as fast as plain decoding here, the fastest of all on this",
        "text.",
    ):
        assert line in lines, line


def test_the_fastest_is_named_whichever_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    lookup = [
        Rival("prompt lookup, 4 drafts", 1, PLAIN, 0.5, same=True),
        Rival("prompt lookup, 4 drafts", 2, Speed(0.005, 0.005, 0.005), 0.5, same=False),
    ]
    for found, words in (
        (replace(DECODED, latency=SLOW),
         "PPD is 0.80 times as fast as plain decoding here; plain decoding on one device is the "
         "fastest on this text."),
        (replace(DECODED, rivals=tuple(lookup)),
         "prompt lookup, 4 drafts: another text than plain decoding's PPD is 1.11 times as fast as "
         "plain decoding here; the fastest on this text is prompt lookup, 4 drafts, tensor "
         "parallel: 2.00 times."),
    ):  # fmt: skip
        render(found, None, row_by_row=False)
        assert words in " ".join(capsys.readouterr().out.split())


def test_what_is_planted_and_random_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    render(replace(DECODED, planted=0.625, random_weights=True), None, row_by_row=False)
    shown = " ".join(capsys.readouterr().out.split())
    assert "PLANTED: the guesses of 0.625 of these tokens were made right. The times" in shown
    assert "RANDOM WEIGHTS: times of this shape; the tokens mean nothing." in shown
    document = overview(replace(DECODED, planted=0.625, random_weights=True))
    assert (document["planted"], document["random_weights"]) == (0.625, True)


@pytest.mark.parametrize("row_by_row", [False, True])
def test_a_token_that_differs_is_said_with_its_margin(
    capsys: pytest.CaptureFixture[str], row_by_row: bool
) -> None:
    difference = Difference(2, 7, 9, margin=0.00125, dtype="float32")
    render(replace(DECODED, difference=difference), None, row_by_row)
    shown = " ".join(capsys.readouterr().out.split())
    words = "the token at 2 differs from plain decoding's, which had a margin of 0.0013 in float32"
    assert words in shown
    assert ("--row-by-row rules that out" in shown) is not row_by_row


def test_a_text_too_short_to_time_has_no_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    short = replace(
        DECODED,
        token_ids=(5, 6),
        n_trials=0,
        n_matched=0,
        n_late=0,
        latency=None,
        greedy=None,
        greedy_same_units=None,
        predicted_right_rate=None,
        predicted_match_rate=None,
        predicted_latency_per_token_s=None,
    )
    render(short, None, row_by_row=False)
    shown = capsys.readouterr().out
    assert "2 tokens, the same as plain decoding's" in shown
    assert "match rate" not in shown
    assert "guesses" not in shown
    assert "times as fast" not in shown
    assert "fastest" not in shown


BAD: list[tuple[str, str]] = [
    ("decode --prompt hi", "Missing option '--exit-layer'"),
    ("decode --prompt hi --exit-layer 0", "exit_layer must be a positive integer; got 0"),
    ("decode --prompt hi --exit-layer 5 --k none", "k must be a positive integer; got none"),
    ("decode --prompt hi --exit-layer 5 --top-p 0.9", "top_p needs a temperature; got none"),
    ("decode --prompt hi --exit-layer 5 --model gpt-5", "model must be a known name"),
    ("decode --prompt hi --exit-layer 5 --calibration {tmp}/none", "the result must exist"),
    ("decode --prompt= --exit-layer 5", "the prompt must have text; got none; give --prompt TEXT"),
    ("decode --exit-layer 5", "the prompt must have text; got none; give --prompt TEXT"),
    (
        "decode --exit-layer 5 --random-weights --config c --planted 1 --prompt hi",
        "random weights have no tokenizer to read a text; got --prompt hi; leave it out",
    ),
    (
        "decode --exit-layer 5 --random-weights --config c --planted 1 --template-arg a=b",
        "random weights have no tokenizer to read a text; got --template-arg ['a=b']; leave it out",
    ),
    (
        "decode --exit-layer 5 --random-weights --config c --planted 1 --raw",
        "random weights have no tokenizer to read a text; got --raw; leave it out",
    ),
    (
        "decode --exit-layer 5 --random-weights --config c",
        "random weights guess nothing right, so their match rate must be planted; got no --planted",
    ),
    (
        "decode --exit-layer 5 --random-weights --planted 1",
        "random weights must have a shape, and no model; got no --config",
    ),
    (
        "decode --exit-layer 5 --prompt hi --config c",
        "--config must come with --random-weights; got c without it",
    ),
    (
        "decode --exit-layer 5 --prompt hi --planted 0.5 --calibration c.json",
        "the match rate must be given once; got --planted 0.5 and c.json; leave out one",
    ),
    (
        "decode --exit-layer 5 --prompt hi --planted 1.5",
        "planted must lie in [0, 1]; got 1.5; give a share of the tokens",
    ),
    (
        "decode --exit-layer 5 --prompt hi --planted nan",
        "planted must lie in [0, 1]; got nan; give a share of the tokens",
    ),
]


@pytest.mark.parametrize(("command", "message"), BAD)
def test_bad_input_is_one_line_and_exit_code_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, message: str
) -> None:
    refused(capsys, command.split(), message, tmp=tmp_path, data=DATA)
    assert list(tmp_path.iterdir()) == []

"""A measurement's life: whole, interrupted, killed, resumed, refused."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ppdmodel.errors import InvalidInputError, RunFailedError
from ppdmodel.measure import batch
from ppdmodel.measure import run as run_module
from ppdmodel.measure.decoder import verify as proof
from ppdmodel.measure.decoder.exit import AffineMap, Exit, logit_exit
from ppdmodel.measure.decoder.sampling import Sampling
from ppdmodel.measure.models.loading import load_model
from ppdmodel.measure.models.sources import locate
from ppdmodel.measure.prompts import Prompt, read_prompts
from ppdmodel.measure.run import Shard
from ppdmodel.measure.store import UNFINISHED
from ppdmodel.measure.training.trained_exits import TrainedExits, fingerprint
from ppdmodel.progress import Progress
from ppdmodel.results.io import read_measurement
from ppdmodel.results.measurement import Measurement
from tests.support.runs import KILLED, ended, measure_flat, measuring, run_until_killed, start


def run(tiny_model: Path, prompt_file: Path, out: Path, **changes: Any) -> Measurement:
    options: dict[str, Any] = {"max_new_tokens": 9, "batch_size": 2, "n_threads": 1} | changes
    return measure_flat(locate(str(tiny_model)), read_prompts(prompt_file), out, **options)


def same_tokens(a: Measurement, b: Measurement) -> bool:
    names = ("prompt_index", "position", "token_id", "rank")
    return a.prompt_ids == b.prompt_ids and all(
        np.array_equal(getattr(a, n), getattr(b, n)) for n in names
    )


def test_a_whole_run(tiny_model: Path, prompt_file: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    result = run(tiny_model, prompt_file, tmp_path / "m", on_progress=seen.append)
    assert result.complete
    assert result.layers == 5
    assert result.prompt_ids == tuple(f"p{n}" for n in range(7))
    assert result.categories == tuple("ab"[n % 2] for n in range(7))
    assert (result.rank[:, -1] == 1).all()
    assert (result.rank >= 1).all()
    assert ((result.top_prob > 0) & (result.top_prob <= 1)).all()
    shares = [p.share for p in seen]
    assert seen[0] == Progress("loading", 0, 0)
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert seen[-1].tokens == result.n_tokens
    assert not (tmp_path / "m" / UNFINISHED).exists()
    found = result.provenance
    assert (found["model"], found["dtype"], found["threads"]) == ("tiny-llama", "float32", 1)
    assert found["packages"]["torch"] == torch.__version__


def test_a_second_run_reuses_the_first(
    tiny_model: Path, prompt_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(tiny_model, prompt_file, tmp_path / "m")

    def never(*_: Any) -> None:
        raise AssertionError("the model was loaded again")

    monkeypatch.setattr(run_module, "load_model", never)
    before = (tmp_path / "m" / "tokens.parquet").stat().st_mtime_ns
    assert same_tokens(run(tiny_model, prompt_file, tmp_path / "m"), first)
    assert (tmp_path / "m" / "tokens.parquet").stat().st_mtime_ns == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interrupted_it_keeps_finished_prompts_and_resumes(
    tiny_model: Path, prompt_file: Path, tmp_path: Path, error: type[BaseException]
) -> None:
    whole = run(tiny_model, prompt_file, tmp_path / "whole")

    def stop_in_third_batch(progress: Progress) -> None:
        if progress.share > 5 / 7:
            raise error

    with pytest.raises(error):
        run(tiny_model, prompt_file, tmp_path / "m", on_progress=stop_in_third_batch)
    partial = read_measurement(tmp_path / "m")
    assert not partial.complete
    assert partial.prompt_ids == ("p0", "p1", "p2", "p3")
    kept = whole.prompt_index < 4
    assert np.array_equal(partial.rank, whole.rank[kept])

    stages: list[str] = []
    resumed = run(
        tiny_model, prompt_file, tmp_path / "m", on_progress=lambda p: stages.append(p.stage)
    )
    assert resumed.complete
    assert same_tokens(resumed, whole)
    assert stages.count("loading") == 1


def test_killed_at_any_moment_it_resumes_with_nothing_lost(
    tiny_model: Path, prompt_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m"
    more = ["--max-new-tokens", "60", "--batch-size", "1"]
    process = start(run_until_killed, measuring(tiny_model, prompt_file, out, *more))
    deadline = time.monotonic() + 120
    while not list((out / UNFINISHED).glob("*.tokens.parquet")):
        assert process.exitcode is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    assert ended(process) == KILLED
    assert list((out / UNFINISHED).glob("*.tokens.parquet"))
    options = {"max_new_tokens": 60, "batch_size": 1}
    resumed = run(tiny_model, prompt_file, out, **options)
    assert same_tokens(resumed, run(tiny_model, prompt_file, tmp_path / "whole", **options))
    assert not (out / UNFINISHED).exists()


def test_killed_while_joining_nothing_counts_twice(
    tiny_model: Path, prompt_file: Path, tmp_path: Path
) -> None:
    """The moment after the joined table is written and before its parts are cleared away."""
    whole = run(tiny_model, prompt_file, tmp_path / "m")
    unfinished = tmp_path / "m" / UNFINISHED
    unfinished.mkdir()
    (tmp_path / "m" / "summary.json").unlink()
    for name in ("tokens.parquet", "guesses.parquet"):
        (unfinished / f"000000.{name}").write_bytes((tmp_path / "m" / name).read_bytes())
    (unfinished / ".000002.tokens.parquet.part-1.parquet").write_bytes(b"PAR1 cut short")
    (tmp_path / "m" / ".tokens.parquet.part-1.parquet").write_bytes(b"PAR1 cut short")
    again = run(tiny_model, prompt_file, tmp_path / "m")
    assert same_tokens(again, whole)
    assert json.loads((tmp_path / "m" / "summary.json").read_text())["n_tokens"] == whole.n_tokens
    names = sorted(path.name for path in (tmp_path / "m").iterdir())
    assert names == ["guesses.parquet", "summary.json", "tokens.parquet"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_new_tokens": 8}, "with max_new_tokens 9 instead of 8; choose another --out"),
        ({"dtype": "bfloat16"}, "with dtype 'float32' instead of 'bfloat16'"),
        ({"raw": True}, "with prompt_format 'chat' instead of 'raw'"),
    ],
)
def test_a_folder_with_another_measurement_is_refused(
    tiny_model: Path, prompt_file: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    run(tiny_model, prompt_file, tmp_path / "m")
    with pytest.raises(InvalidInputError) as caught:
        run(tiny_model, prompt_file, tmp_path / "m", **changes)
    assert "the out folder must hold this same measurement" in str(caught.value)
    assert words in str(caught.value)


def test_a_folder_with_other_files_is_refused(
    tiny_model: Path, prompt_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(InvalidInputError, match="with other files; choose another --out"):
        run(tiny_model, prompt_file, tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "mine"
    with pytest.raises(InvalidInputError, match="the out folder must be a folder; got the file"):
        run(tiny_model, prompt_file, tmp_path / "thesis.tex")


def test_a_head_that_is_read_wrongly_fails_and_leaves_nothing(
    tiny_model: Path, prompt_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "logit_exit", _broken)
    with pytest.raises(RunFailedError, match="the last layer must rank every token first"):
        run(tiny_model, prompt_file, tmp_path / "m")
    assert not (tmp_path / "m" / "summary.json").exists()


class _Broken(Exit):
    """Reads the model's logits with tokens swapped."""

    def finish(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.copy_(logits.roll(1, dims=1))


def _broken(model: Any) -> Exit:
    right = logit_exit(model)
    return _Broken(right.decoder_layers, right.tail, right.head)


def test_a_near_tie_is_counted_with_its_margin(
    tiny_model: Path, prompt_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranking rounds differently from decoding: at the last layer the runner-up wins by a hair."""
    calls = [0]

    def rounded(_self: Exit, logits: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        if calls[0] > 6:  # after the two probes of the last exit and layers 1 to 4
            top = logits.topk(2, dim=1)
            logits[0, top.indices[0, 1]] = top.values[0, 0] + 1e-4
        return logits

    monkeypatch.setattr(Exit, "finish", rounded)
    result = run(tiny_model, prompt_file, tmp_path / "m", max_new_tokens=3, batch_size=7)
    (tie,) = result.ties
    assert (tie["prompt_id"], tie["position"], tie["rank"]) == ("p0", 0, 2)
    assert tie["margin"] == pytest.approx(1e-4, rel=0.1)
    assert read_measurement(tmp_path / "m").ties == result.ties


def test_a_prompt_that_does_not_fit_is_named(
    tiny_model: Path, prompt_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError, match=r"must fit the model's context of 256; got \d+ \+"):
        run(tiny_model, prompt_file, tmp_path / "m", max_new_tokens=250)
    assert not (tmp_path / "m" / "summary.json").exists()


@pytest.mark.parametrize("name", ["max_new_tokens", "batch_size", "n_threads"])
def test_numbers_must_be_positive(
    tiny_model: Path, prompt_file: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(InvalidInputError, match="must be a positive integer; got 0"):
        run(tiny_model, prompt_file, tmp_path / "m", **{name: 0})


def test_where_another_batch_size_changes_the_text_the_margin_is_on_record(
    tiny_model: Path, prompt_file: Path, tmp_path: Path
) -> None:
    """In bfloat16 batches round visibly: each text's first change is at a token told as near."""
    options = {"dtype": "bfloat16", "max_new_tokens": 120}
    one, all_ = (
        run(tiny_model, prompt_file, tmp_path / str(size), batch_size=size, **options)
        for size in (1, 7)
    )
    changed = 0
    for number, name in enumerate(one.prompt_ids):
        texts = [m.token_id[m.prompt_index == number].tolist() for m in (one, all_)]
        first = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), None)
        if first is not None:
            changed += 1
            for measured in (one, all_):
                near = {(tie["prompt_id"], tie["position"]) for tie in measured.near_ties}
                assert (name, first) in near
    assert changed, "no text changed: the test shows nothing"


def test_near_ties_are_those_of_the_models_own_logits(
    tiny_model: Path, prompt_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(batch.NEAR_MARGIN, torch.float32, 0.2)
    result = run(tiny_model, prompt_file, tmp_path / "m", max_new_tokens=30)
    told = {(t["prompt_id"], t["position"]): t["margin"] for t in result.near_ties}
    assert json.loads((tmp_path / "m" / "summary.json").read_text())["near_ties"]
    loaded = load_model(locate(str(tiny_model)))
    for number, prompt in enumerate(read_prompts(prompt_file)):
        made = result.token_id[result.prompt_index == number].tolist()
        start = loaded.encode([prompt.text])
        with torch.no_grad():
            logits = loaded.model(torch.tensor([start + made])).logits[0, len(start) - 1 : -1]
        top = logits.topk(2, dim=1).values
        for position, margin in enumerate((top[:, 0] - top[:, 1]).tolist()):
            if abs(margin - 0.2) > 1e-3:
                assert ((prompt.id, position) in told) == (margin < 0.2)
            if (prompt.id, position) in told:
                assert told[prompt.id, position] == pytest.approx(margin, abs=1e-3)


def test_shards_have_the_batches_in_turn(
    tiny_model: Path, prompt_file: Path, tmp_path: Path
) -> None:
    """Seven prompts are four batches: a shard of five has none, and the fourth has the last."""
    names = {
        (1, 3): ("p0", "p1", "p6"),
        (2, 3): ("p2", "p3"),
        (3, 3): ("p4", "p5"),
        (4, 4): ("p6",),
    }
    for (number, count), expected in names.items():
        out = tmp_path / f"{number}"
        shard = Shard.parse(f"{number}/{count}")
        found = run(tiny_model, prompt_file, out, shard=shard, max_new_tokens=2)
        assert found.prompt_ids == expected
        assert not found.complete
        assert found.provenance["shard"] == f"{number}/{count} of batches of 2"
    with pytest.raises(InvalidInputError, match="a batch to do; got 5/5 of 4 batches; use fewer"):
        run(tiny_model, prompt_file, tmp_path / "5", shard=Shard(5, 5))


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "1/0", "-1/3", "a/b", "1/b", "/2", ""])
def test_what_is_no_shard_is_named(text: str) -> None:
    with pytest.raises(InvalidInputError, match="shard must be i/N with i from 1 to N; got"):
        Shard.parse(text)


def test_provenance_says_how_text_was_made_and_by_which_exits(
    tiny_model: Path, prompt_file: Path, tmp_path: Path
) -> None:
    """Exits whose prompts are measured are refused, and those of the last layer do not fit."""
    map_, used = AffineMap(torch.zeros(32, 32), torch.zeros(32)), Prompt("t", "the quick")
    exits = TrainedExits({2: map_}, "f" * 64, {"n_tokens": 9}, {"trained_on": [fingerprint(used)]})
    plain = run(tiny_model, prompt_file, tmp_path / "plain").provenance
    assert (plain["exit_kind"], plain["decoding"]) == ("logit", "greedy")
    found = run(
        tiny_model, prompt_file, tmp_path / "m", exits=exits, sampling=Sampling(0.5, seed=3)
    ).provenance
    expected: dict[str, Any] = {
        "exit_kind": "trained",
        "exits_sha256": "f" * 64,
        "exits": {"n_tokens": 9},
    }
    expected |= {"decoding": "sampled", "temperature": 0.5, "top_p": 1.0, "seed": 3}
    assert {name: found[name] for name in expected} == expected
    source = locate(str(tiny_model))
    with pytest.raises(InvalidInputError, match="that they were not trained on; got 1"):
        measure_flat(source, [used], tmp_path / "used", exits=exits)
    with pytest.raises(InvalidInputError, match="for layer 5 of 5"):
        run(tiny_model, prompt_file, tmp_path / "last", exits=replace(exits, maps={5: map_}))


def _never(*_: Any, **__: Any) -> None:
    raise AssertionError("this must not be called")


def test_a_conversation_must_fit_the_context_with_all_its_answers(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last turn's context holds every answer before it: 100 + 100 + 2 x 29 is too much."""
    conversation = partial(measure_flat, locate(str(tiny_model)), n_threads=1)
    first, second = "a" * 100, "b" * 100
    conversation([Prompt("one", first)], tmp_path / "one", raw=True, max_new_tokens=29)
    both = Prompt("both", first, later_turns=(second,))
    with monkeypatch.context() as patched:
        patched.setattr(run_module, "measure_batch", _never)
        prompts = [Prompt("one", first), both]
        with pytest.raises(InvalidInputError) as caught:
            conversation(prompts, tmp_path / "m", raw=True, max_new_tokens=29)
    words = "must fit the model's context of 256; got 200 + 58 for prompt 'both'; shorten one"
    assert words in str(caught.value)
    assert not (tmp_path / "m" / "summary.json").exists()
    with pytest.raises(InvalidInputError, match=r"got 241 \+ 28 for prompt 'both'"):
        conversation([both], tmp_path / "m", max_new_tokens=14)  # the template counts too

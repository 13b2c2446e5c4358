"""Shards of a measurement: joined in any order they are the whole; what does not fit is refused."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest

from ppdmodel import load
from ppdmodel.errors import InvalidInputError
from ppdmodel.measure.models.sources import locate
from ppdmodel.measure.prompts import read_prompts
from ppdmodel.measure.run import Shard
from ppdmodel.measure.shards import merge
from ppdmodel.progress import Progress
from ppdmodel.results.measurement import Measurement
from tests.conftest import make_tiny_llama
from tests.support.runs import (
    Outcome,
    assert_same,
    command,
    measure_flat,
    measuring,
    snapshot,
    write_prompts,
)


class Parts(NamedTuple):
    """One measurement made whole, and in three shards."""

    whole: Path
    shards: list[Path]
    words: list[str]


SETTINGS: dict[str, list[str]] = {
    "pairs": [],
    "threes, sampled": ["--batch-size", "3", "--temperature", "0.8", "--top-p", "0.9"],
    "balanced, no guesses": ["--batch-size", "5", "--no-guesses", "--raw"],
}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("prompts") / "prompts.jsonl")


@pytest.fixture(scope="module")
def measured(
    tiny_model: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Measure with some options, once for each set of them."""
    home = tmp_path_factory.mktemp("measured")
    known: dict[tuple[str, ...], Path] = {}

    def once(*options: str) -> Path:
        if options not in known:
            out = home / str(len(known))
            outcome = command(*measuring(tiny_model, prompts, out, *options))
            assert outcome.code == 0, outcome
            known[options] = out
        return known[options]

    return once


@pytest.fixture(scope="module", params=list(SETTINGS.values()), ids=list(SETTINGS))
def parts(request: pytest.FixtureRequest, measured: Callable[..., Path]) -> Parts:
    words = request.param
    count = 2 if "5" in words else 3
    shards = [measured(*words, "--shard", f"{n}/{count}") for n in range(1, count + 1)]
    return Parts(measured(*words), shards, words)


@pytest.fixture
def shards(measured: Callable[..., Path]) -> list[Path]:
    return [measured("--shard", f"{n}/3") for n in (1, 2, 3)]


def merged(folders: list[Path], out: Path, *more: object) -> Outcome:
    return command("merge", *folders, "--out", out, *more)


def row_groups(folder: Path) -> list[int]:
    about = pq.ParquetFile(folder / "tokens.parquet").metadata
    return [about.row_group(n).num_rows for n in range(about.num_row_groups)]


def test_merged_in_any_order_shards_are_the_single_run(parts: Parts, tmp_path: Path) -> None:
    before = [snapshot(shard) for shard in parts.shards]
    for number, order in enumerate(itertools.permutations(parts.shards)):
        out = tmp_path / str(number)
        outcome = merged(list(order), out)
        assert (outcome.code, outcome.notes) == (0, [])
        assert_same(out, parts.whole)
        assert row_groups(out) == row_groups(parts.whole)
    assert [snapshot(shard) for shard in parts.shards] == before, "merging leaves shards alone"


def test_shards_have_each_batch_once(parts: Parts) -> None:
    """A merge that dropped what two shards both measured would hide that work was done twice."""
    ids = [set(load_measurement(shard).prompt_ids) for shard in parts.shards]
    assert sum(map(len, ids)) == 7
    assert set().union(*ids) == set(load_measurement(parts.whole).prompt_ids)
    assert all(ids)


def load_measurement(folder: Path) -> Measurement:
    found = load(folder)
    assert isinstance(found, Measurement)
    return found


def test_the_whole_says_which_runs_it_is_of(shards: list[Path], tmp_path: Path) -> None:
    assert merged(shards, tmp_path / "m").code == 0
    about = load_measurement(tmp_path / "m").provenance
    assert about["shard"] is None
    assert [run["shard"][:3] for run in about["merged"]] == ["1/3", "2/3", "3/3"]
    assert all(run["packages"]["torch"] for run in about["merged"])
    first = load_measurement(shards[0]).provenance
    for name in ("device", "threads", "packages"):
        assert about[name] == first[name], "of the first, since the merge ran no model"


def test_json_is_one_document(shards: list[Path], tmp_path: Path) -> None:
    import json

    outcome = merged(shards, tmp_path / "m", "--json")
    assert json.loads(outcome.out)["complete"] is True
    assert outcome.err == ""


def test_without_a_shard_it_is_incomplete_until_measured(
    tiny_model: Path,
    prompts: Path,
    shards: list[Path],
    measured: Callable[..., Path],
    tmp_path: Path,
) -> None:
    out = tmp_path / "m"
    outcome = merged([shards[2], shards[0]], out)
    assert outcome.code == 0
    (note,) = outcome.notes
    assert note.startswith("5 of 7 prompts: the rest is missing; merge all shards, or go on with")
    found = load_measurement(out)
    assert not found.complete
    assert found.prompt_ids == ("p0", "p1", "p4", "p5", "p6")
    whole = measured()
    lacking = load_measurement(whole)
    kept = [lacking.prompt_ids[n] in found.prompt_ids for n in lacking.prompt_index]
    assert found.rank.tolist() == lacking.rank[kept].tolist()

    outcome = command(*measuring(tiny_model, prompts, out))
    assert (outcome.code, outcome.notes) == (0, [])
    assert_same(out, whole)


def test_one_shard_alone_can_be_merged_and_completed(
    tiny_model: Path,
    prompts: Path,
    shards: list[Path],
    measured: Callable[..., Path],
    tmp_path: Path,
) -> None:
    out = tmp_path / "m"
    assert merged(shards[1:2], out).notes[0].startswith("2 of 7 prompts")
    assert command(*measuring(tiny_model, prompts, out)).code == 0
    assert_same(out, measured())


def test_a_shard_resumes_with_its_own_prompts_only(
    tiny_model: Path, prompts: Path, shards: list[Path], tmp_path: Path
) -> None:
    """Killed in its second batch, shard 1 of 3 must not take up what shards 2 and 3 have."""
    options: dict[str, Any] = {"max_new_tokens": 4, "batch_size": 2, "n_threads": 1}
    options |= {"shard": Shard(1, 3), "device": "cpu"}
    out = tmp_path / "m"
    source, questions = locate(str(tiny_model)), read_prompts(prompts)

    def stop(progress: Progress) -> None:
        if progress.share > 0.7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_flat(source, questions, out, on_progress=stop, **options)
    assert load_measurement(out).prompt_ids == ("p0", "p1")
    ranked: list[Progress] = []
    result = measure_flat(source, questions, out, on_progress=ranked.append, **options)
    assert result.prompt_ids == ("p0", "p1", "p6")
    assert sum(progress.stage == "ranked" for progress in ranked) == 1, "one batch was left"
    assert ranked[-1].share == pytest.approx(1)
    assert_same(out, shards[0])


# ---------------------------------------------------------------- what is refused


def refused(folders: list[Path], out: Path) -> str:
    """The one line with which a merge is refused as bad input; nothing is left behind."""
    outcome = merged(folders, out)
    assert outcome.code == 2, outcome
    assert not out.exists() or not any(out.iterdir())
    return outcome.error


OTHERS = {
    "max_new_tokens": (["--max-new-tokens", "5"], "max_new_tokens 5"),
    "dtype": (["--dtype", "bfloat16"], "dtype 'bfloat16'"),
    "prompts": (["--limit", "6"], "n_prompts 6"),
    "format": (["--raw"], "prompt_format 'raw'"),
    "guesses": (["--no-guesses"], "guesses False"),
    "decoding": (["--temperature", "1"], "decoding 'sampled'"),
}


@pytest.mark.parametrize(("options", "words"), OTHERS.values(), ids=OTHERS.keys())
def test_other_settings_are_refused(
    measured: Callable[..., Path],
    shards: list[Path],
    tmp_path: Path,
    options: list[str],
    words: str,
) -> None:
    other = measured(*options, "--shard", "2/3")
    error = refused([shards[0], other, shards[2]], tmp_path / "m")
    assert f"shards must be parts of one measurement; got {other} with {words} instead of" in error
    assert str(shards[0]) in error


def test_another_seed_is_refused(measured: Callable[..., Path], tmp_path: Path) -> None:
    folders = [
        measured("--temperature", "1", "--seed", str(n), "--shard", f"{n}/3") for n in (1, 2)
    ]
    assert "with seed 2 instead of 1" in refused(folders, tmp_path / "m")


def test_other_exits_and_other_weights_are_refused(
    tiny_model: Path, prompts: Path, shards: list[Path], tmp_path: Path
) -> None:
    exits, questions = tmp_path / "exits", tmp_path / "training.txt"
    questions.write_text("\n\n".join(f"say {n} words" for n in range(8)), encoding="utf-8")
    words = ["--model", tiny_model, "--prompts", questions, "--threads", 1, "--max-new-tokens", 2]
    assert command("train-exits", *words, "--out", exits, "--exit-layers", 2).code == 0
    trained = tmp_path / "trained"
    words = ["--exits", exits, "--shard", "2/3"]
    assert command(*measuring(tiny_model, prompts, trained, *words)).code == 0
    assert "with exit_kind 'trained' instead of 'logit'" in refused(
        [shards[0], trained], tmp_path / "m"
    )

    namesake = make_tiny_llama(tmp_path / "tiny-llama", seed=1)
    other = tmp_path / "other"
    assert command(*measuring(namesake, prompts, other, "--shard", "2/3")).code == 0
    assert "with weights_sha256" in refused([shards[0], other], tmp_path / "m")


def test_another_cut_is_refused(
    measured: Callable[..., Path], shards: list[Path], tmp_path: Path
) -> None:
    for options in (["--shard", "2/4"], ["--shard", "2/3", "--batch-size", "3"], []):
        error = refused([shards[0], measured(*options)], tmp_path / "m")
        assert "shards must be of one partition of the batches; got" in error
        assert "use one N and one --batch-size" in error


def test_overlap_is_refused(shards: list[Path], tmp_path: Path) -> None:
    twin = shutil.copytree(shards[0], tmp_path / "twin")
    for second in (shards[0], twin):
        error = refused([shards[0], second, shards[1]], tmp_path / "m")
        assert f"shards must not overlap; got prompt 'p0' in {shards[0]} and {second}" in error


def test_what_is_no_measurement_is_refused(
    prompts: Path, shards: list[Path], tmp_path: Path
) -> None:
    killed = tmp_path / "killed"
    (killed / ".unfinished").mkdir(parents=True)
    for absent in (tmp_path / "nowhere", prompts, killed):
        error = refused([shards[0], absent], tmp_path / "m")
        assert "each shard must be a measurement folder with summary.json; got" in error
        assert str(absent) in error


LOST = {
    "tokens.parquet": "tokens.parquet must be a whole Parquet file",
    "guesses.parquet": "each shard must hold its guesses.parquet",
}


@pytest.mark.parametrize(("name", "words"), LOST.items())
def test_a_shard_that_lacks_a_file_is_refused(
    shards: list[Path], tmp_path: Path, name: str, words: str
) -> None:
    lame = shutil.copytree(shards[1], tmp_path / "lame")
    (lame / name).unlink()
    assert words in refused([shards[0], lame, shards[2]], tmp_path / "m")


@pytest.mark.parametrize("name", ["tokens.parquet", "guesses.parquet"])
@pytest.mark.parametrize("damage", ["cut", "of another shard", "the other table"])
def test_a_shard_with_a_damaged_or_foreign_table_is_refused(
    shards: list[Path], tmp_path: Path, name: str, damage: str
) -> None:
    lame = shutil.copytree(shards[1], tmp_path / "lame")
    if damage == "cut":
        (lame / name).write_bytes((lame / name).read_bytes()[:-400])
    elif damage == "of another shard":
        shutil.copy(shards[0] / name, lame / name)
    else:
        (other,) = {"tokens.parquet", "guesses.parquet"} - {name}
        shutil.copy(lame / other, lame / name)
    assert "lame" in refused([shards[0], lame, shards[2]], tmp_path / "m")


def test_the_out_folder_must_be_empty(shards: list[Path], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "notes.txt", shards[2]):
        before = snapshot(shards[2])
        outcome = merged(shards, out)
        assert outcome.code == 2
        what = "a folder; got the file" if out.is_file() else "new or empty; got"
        assert f"the out folder must be {what}" in outcome.error
        assert (tmp_path / "notes.txt").read_text() == "mine"
        assert snapshot(shards[2]) == before


def test_no_folder_is_no_merge(tmp_path: Path) -> None:
    outcome = command("merge", "--out", tmp_path / "m")
    assert outcome.code == 2
    assert "Missing argument 'DIR...'" in outcome.error
    with pytest.raises(InvalidInputError, match="merge needs at least one measurement; got none"):
        merge([], tmp_path / "m")


def test_a_merge_of_merged_shards_is_the_whole_or_one_clear_line(
    measured: Callable[..., Path], shards: list[Path], tmp_path: Path
) -> None:
    assert merged(shards[:2], tmp_path / "two").code == 0
    outcome = merged([tmp_path / "two", shards[2]], tmp_path / "m")
    if outcome.code == 0:
        assert_same(tmp_path / "m", measured())
    else:
        assert len(outcome.error) < 500


# ---------------------------------------------------------------- parts of nothing


def test_more_shards_than_batches_is_one_clear_line(
    tiny_model: Path, prompts: Path, tmp_path: Path
) -> None:
    outcome = command(*measuring(tiny_model, prompts, tmp_path / "m", "--shard", "5/5"))
    assert outcome.code == 2
    assert "shard must have a batch to do; got 5/5 of 4 batches" in outcome.error
    assert not (tmp_path / "m").exists()
    outcome = command(*measuring(tiny_model, prompts, tmp_path / "m", "--shard", "4/5"))
    assert outcome.code == 0
    assert load_measurement(tmp_path / "m").prompt_ids == ("p6",)


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "1/0", "-1/3", "a/b", "1/3/2", "1.5/3", ""])
def test_what_is_no_shard_is_named(
    tiny_model: Path, prompts: Path, tmp_path: Path, text: str
) -> None:
    outcome = command(*measuring(tiny_model, prompts, tmp_path / "m", "--shard", text))
    assert outcome.code == 2
    assert "shard must be i/N with i from 1 to N; got" in outcome.error


def test_no_prompts_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="prompt"):
        measure_flat(locate(str(tiny_model)), [], tmp_path / "m", n_threads=1)


# ---------------------------------------------------------------- a merge that does not end


def test_a_merge_that_fails_half_way_says_so_and_can_be_repeated(
    shards: list[Path],
    measured: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import os

    rename = os.replace
    before = [snapshot(shard) for shard in shards]
    for nth in (1, 2, 3):  # guesses, tokens, summary
        calls = itertools.count(1)

        def refuse(*names: Any, calls: Any = calls, nth: int = nth) -> None:
            if next(calls) == nth:
                raise OSError(28, "No space left on device")
            rename(*names)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", refuse)
            outcome = merged(shards, tmp_path / f"m{nth}")
        assert outcome.code == 1
        assert "must be writable; got No space left on device" in outcome.error
        assert not [name for name in snapshot(tmp_path / f"m{nth}") if ".part-" in name]
        assert not (tmp_path / f"m{nth}" / "summary.json").exists()
        assert merged(shards, tmp_path / f"again{nth}").code == 0
        assert_same(tmp_path / f"again{nth}", measured())
    assert [snapshot(shard) for shard in shards] == before

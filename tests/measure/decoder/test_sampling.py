"""Sampled text and coupled ranks: the noise, what it chooses, and that it can be drawn again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from ppdmodel.cli import run as run_command
from ppdmodel.errors import InvalidInputError
from ppdmodel.measure.decoder.sampling import Sampling, TokenPosition, choose, gumbel, within_top_p
from ppdmodel.measure.models.sources import locate
from ppdmodel.measure.prompts import Prompt
from ppdmodel.progress import Progress
from ppdmodel.results.io import read_measurement
from ppdmodel.results.measurement import Measurement
from tests.conftest import TEXT
from tests.support.runs import measure_flat

TOKENS = 12
WORDS = TEXT.split()
PROMPTS = [
    Prompt(f"p{n}", " ".join(WORDS[: 1 + 2 * n]), later_turns=("more",) if n == 2 else ())
    for n in range(7)
]


def run(model: Path, out: Path, sampling: Sampling | None, **changes: Any) -> Measurement:
    options: dict[str, Any] = {"max_new_tokens": TOKENS, "batch_size": 3, "n_threads": 1} | changes
    prompts = options.pop("prompts", PROMPTS)
    return measure_flat(locate(str(model)), prompts, out, sampling=sampling, **options)


def texts(result: Measurement) -> dict[tuple[str, int], list[int]]:
    """Token ids by prompt and turn."""
    found: dict[tuple[str, int], list[int]] = {}
    for index, turn, token in zip(result.prompt_index, result.turn, result.token_id, strict=True):
        found.setdefault((result.prompt_ids[index], int(turn)), []).append(int(token))
    return found


# ---------------------------------------------------------------- the noise


def test_noise_depends_on_seed_prompt_turn_and_position_alone() -> None:
    here = TokenPosition("prompt", 1, 2)
    first = gumbel(7, here, 500)
    np.random.seed(1)
    torch.manual_seed(1)
    assert np.array_equal(gumbel(7, TokenPosition("prompt", 1, 2), 500), first)
    others = [
        gumbel(8, here, 500),
        gumbel(7, TokenPosition("prompt ", 1, 2), 500),
        gumbel(7, TokenPosition("prompt", 2, 2), 500),
        gumbel(7, TokenPosition("prompt", 1, 3), 500),
        gumbel(7, TokenPosition("prompt", 2, 1), 500),
        gumbel(71, TokenPosition("prompt", 1, 2), 500),
        gumbel(7, TokenPosition("prompt\n1", 1, 2), 500),
        gumbel(7, TokenPosition("prompt", 12, 2), 500),
        gumbel(7, TokenPosition("prompt", 1, 22), 500),
    ]
    for other in others:
        assert not np.isclose(other, first).any()


def test_noise_is_the_same_on_any_machine() -> None:
    """Numbers once drawn: another NumPy that draws others makes other text of the same seed."""
    found = gumbel(3, TokenPosition("an id with ü", 0, 41), 257)
    assert found.dtype == np.float32
    assert found[[0, 1, 256]] == pytest.approx([1.1042817, 0.98459965, -1.2713377], rel=1e-5)


def test_noise_is_standard_gumbel_and_independent() -> None:
    drawn = np.stack([gumbel(0, TokenPosition(f"p{n % 9}", n % 3, n), 500) for n in range(400)])
    assert stats.kstest(drawn.ravel(), stats.gumbel_r.cdf).pvalue > 0.01
    assert stats.kstest(drawn.max(axis=1) - math.log(500), stats.gumbel_r.cdf).pvalue > 0.01
    bound = 5 / math.sqrt(drawn.size)
    by_rank = stats.rankdata(drawn).reshape(drawn.shape) / drawn.size - 0.5
    for shifted in (np.roll(by_rank, 1, axis=0), np.roll(by_rank, 1, axis=1)):
        assert abs(12 * (by_rank * shifted).mean()) < bound
    assert np.isfinite(drawn).all()


# ---------------------------------------------------------------- what it chooses


def frequencies(logits: Tensor, sampling: Sampling, n: int = 6000) -> Any:
    """How often each token is chosen, over as many places."""
    places = [TokenPosition(f"p{i % 11}", 0, i) for i in range(n)]
    chosen, noise = choose(logits.expand(n, -1), places, sampling)
    assert noise is not None
    return np.bincount(chosen.numpy(), minlength=len(logits))


def softmax(logits: Tensor, temperature: float) -> Any:
    x = logits.double().numpy() / temperature
    p = np.exp(x - x.max())
    return p / p.sum()


LOGITS = torch.tensor([2.0, 1.5, 1.0, 0.0, -0.5, -1.0, -1.5, 2.2])


def test_a_nucleus_of_all_leaves_out_no_token() -> None:
    """However improbable it is: a sum of probabilities may be rounded to 1 before it."""
    logits = torch.tensor([[100.0, 1.0, 0.0]])
    assert torch.equal(within_top_p(logits, 1.0), logits)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_tokens_come_as_often_as_softmax_says(temperature: float) -> None:
    counts = frequencies(LOGITS, Sampling(temperature))
    p = softmax(LOGITS, temperature)
    assert stats.chisquare(counts, p * counts.sum()).pvalue > 0.01
    wrong = softmax(LOGITS, temperature * 1.15)
    assert stats.chisquare(counts, wrong * counts.sum()).pvalue < 1e-4, "it would be noticed"


def nucleus(p: Any, top_p: float) -> set[int]:
    """The smallest set of tokens with that much probability, by adding them up one by one."""
    kept: set[int] = set()
    total = 0.0
    for token in sorted(range(len(p)), key=lambda i: -p[i]):
        kept.add(token)
        total += p[token]
        if total >= top_p:
            break
    return kept


@pytest.mark.parametrize("temperature", [0.6, 1.0])
@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.55, 0.9, 0.999])
def test_top_p_never_leaves_the_nucleus_and_keeps_its_proportions(
    top_p: float, temperature: float
) -> None:
    p = softmax(LOGITS, temperature)
    inside = sorted(nucleus(p, top_p))
    counts = frequencies(LOGITS, Sampling(temperature, top_p), 3000)
    assert counts.sum() == counts[inside].sum() == 3000
    if len(inside) > 1:
        share = p[inside] / p[inside].sum()
        assert stats.chisquare(counts[inside], share * 3000).pvalue > 0.01


def test_the_nucleus_is_that_of_plain_addition_for_any_logits() -> None:
    torch.manual_seed(0)
    scores = torch.randn(60, 40) * torch.linspace(0.1, 6, 60)[:, None]
    sizes = set()
    for top_p in (0.05, 0.5, 0.8, 0.97):
        found = within_top_p(scores, top_p)
        for row, kept in zip(scores, found, strict=True):
            expected = nucleus(softmax(row, 1.0), top_p)
            assert set(torch.isfinite(kept).nonzero()[:, 0].tolist()) == expected
            assert torch.equal(kept[list(expected)], row[list(expected)])
            sizes.add(len(expected))
    assert len(sizes) > 10
    assert within_top_p(scores, 1.0) is scores


def test_greedy_text_has_no_noise() -> None:
    chosen, noise = choose(LOGITS[None], [TokenPosition("p", 0, 0)], None)
    assert chosen.tolist() == [7]
    assert noise is None


# ---------------------------------------------------------------- the same text everywhere


@pytest.fixture(scope="module")
def sampled(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Measurement:
    """The tiny model at temperature 1, with one conversation of two turns."""
    return run(tiny_model, tmp_path_factory.mktemp("sampled") / "m", Sampling(seed=5))


@pytest.mark.parametrize("batch_size", [1, 7])
def test_text_does_not_depend_on_the_batch(
    tiny_model: Path, sampled: Measurement, tmp_path: Path, batch_size: int
) -> None:
    again = run(tiny_model, tmp_path / "m", Sampling(seed=5), batch_size=batch_size)
    for name in ("prompt_index", "turn", "position", "token_id", "rank", "coupled_rank"):
        assert np.array_equal(getattr(again, name), getattr(sampled, name))
    assert len({tuple(text) for text in texts(again).values()}) == 8, "all texts differ"


def test_text_does_not_depend_on_the_order_of_the_prompts(
    tiny_model: Path, sampled: Measurement, tmp_path: Path
) -> None:
    order = [PROMPTS[n] for n in (5, 2, 6, 0, 3, 1, 4)]
    again = run(tiny_model, tmp_path / "m", Sampling(seed=5), prompts=order)
    assert again.prompt_ids == tuple(prompt.id for prompt in order)
    assert texts(again) == texts(sampled)


def test_text_is_the_same_after_a_resumed_run(
    tiny_model: Path, sampled: Measurement, tmp_path: Path
) -> None:
    def stop(progress: Progress) -> None:
        if progress.share > 0.6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny_model, tmp_path / "m", Sampling(seed=5), on_progress=stop)
    assert not read_measurement(tmp_path / "m").complete
    for other, words in (
        (Sampling(seed=6), "with seed 5 instead of 6"),
        (Sampling(0.9, seed=5), "with temperature 1.0 instead of 0.9"),
        (Sampling(top_p=0.9, seed=5), "with top_p 1.0 instead of 0.9"),
        (None, "with decoding 'sampled' instead of 'greedy'"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            run(tiny_model, tmp_path / "m", other)
    again = run(tiny_model, tmp_path / "m", Sampling(seed=5))
    assert again.complete
    assert texts(again) == texts(sampled)
    assert np.array_equal(again.coupled_rank, sampled.coupled_rank)  # type: ignore[arg-type]


def test_another_seed_gives_another_text(
    tiny_model: Path, sampled: Measurement, tmp_path: Path
) -> None:
    other = texts(run(tiny_model, tmp_path / "m", Sampling(seed=6)))
    assert all(other[key][:4] != text[:4] for key, text in texts(sampled).items())


def test_the_turns_of_one_prompt_have_noise_of_their_own(tiny_model: Path, tmp_path: Path) -> None:
    """At so high a temperature the noise alone decides, and it must not say the same twice."""
    prompts = [Prompt("a", "x", later_turns=("x",)), Prompt("b", "x")]
    found = texts(run(tiny_model, tmp_path / "m", Sampling(1e6), prompts=prompts))
    for (prompt, turn), text in found.items():
        noise = [gumbel(0, TokenPosition(prompt, turn, n), 257) for n in range(len(text))]
        assert text == [int(drawn.argmax()) for drawn in noise]
    assert len({tuple(text) for text in found.values()}) == 3


def test_a_temperature_near_zero_gives_greedy_text(tiny_model: Path, tmp_path: Path) -> None:
    cold = run(tiny_model, tmp_path / "cold", Sampling(1e-4, seed=2))
    greedy = run(tiny_model, tmp_path / "greedy", None)
    assert texts(cold) == texts(greedy)
    assert np.array_equal(cold.rank, greedy.rank)
    assert np.array_equal(cold.coupled_rank, greedy.rank)  # type: ignore[arg-type]
    assert greedy.coupled_rank is None


# ---------------------------------------------------------------- ranks by a slow path


def slow_logits(model: Any, ids: Sequence[int], made: Sequence[int]) -> Tensor:
    """Each layer's logits [layers, tokens, vocabulary], from one pass without a cache."""
    with torch.no_grad():
        out = model(torch.tensor([[*ids, *made]]), output_hidden_states=True, use_cache=False)
        normed = [model.model.norm(h) for h in out.hidden_states[1:-1]] + [out.hidden_states[-1]]
        return torch.stack([model.lm_head(h[0, len(ids) - 1 : -1]) for h in normed])


def rank_of(scores: Tensor, made: Sequence[int]) -> Any:
    """Place [tokens, layers] of the made tokens when scores [layers, tokens, vocabulary] sort."""
    order = scores.argsort(dim=-1, descending=True)
    found = (order == torch.tensor(made)[None, :, None]).nonzero()[:, 2] + 1
    return found.view(scores.shape[:2]).T.numpy()


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (2.0, 0.8), (1.0, 0.5)])
def test_ranks_equal_those_by_a_slow_path(
    tiny_model: Path, tmp_path: Path, temperature: float, top_p: float
) -> None:
    """Plain and coupled; and each token is what the noise chooses of the nucleus."""
    prompts = [prompt for prompt in PROMPTS if not prompt.later_turns]
    sampling = Sampling(temperature, top_p, seed=11)
    result = run(tiny_model, tmp_path / "m", sampling, prompts=prompts)
    assert result.coupled_rank is not None
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    found = texts(result)
    for number, prompt in enumerate(prompts):
        made = found[prompt.id, 0]
        ids = tokenizer(f"[user] {prompt.text}\n[assistant] ", add_special_tokens=False).input_ids
        logits = slow_logits(model, ids, made)
        noise = torch.from_numpy(
            np.stack([gumbel(11, TokenPosition(prompt.id, 0, n), 257) for n in range(len(made))])
        )
        mine = result.prompt_index == number
        assert np.array_equal(result.rank[mine], rank_of(logits, made))
        noisy = logits / temperature + noise
        assert np.array_equal(result.coupled_rank[mine], rank_of(noisy, made))
        for row, token in enumerate(made):
            kept = list(nucleus(softmax(logits[-1, row], temperature), top_p))
            assert token == kept[int(noisy[-1, row, kept].argmax())]
    last = result.coupled_rank[:, -1]
    assert (last == 1).all() if top_p == 1 else (last > 1).any()
    assert (result.rank[:, -1] > 1).any(), "not greedy"
    about = result.provenance
    assert [about[name] for name in ("decoding", "temperature", "top_p", "seed")] == [
        "sampled", temperature, top_p, 11,
    ]  # fmt: skip


def test_coupled_guesses_are_right_more_often(tiny_model: Path, tmp_path: Path) -> None:
    """At every layer and every k told; on this model, at layer 3 of 5, 50% against 5% at k = 1."""
    result = run(tiny_model, tmp_path / "m", Sampling(), max_new_tokens=40)
    assert result.coupled_rank is not None
    for k in (1, 3, 10):
        plain = (result.rank <= k).mean(axis=0)
        coupled = (result.coupled_rank <= k).mean(axis=0)
        assert (coupled[2:] > plain[2:] + 0.1).all()
        assert (coupled >= plain).all()
    assert np.array_equal(result.coupled().rank, result.coupled_rank)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_half_precision_the_last_layer_still_guesses_its_own_sample(
    tiny_model: Path, tmp_path: Path, dtype: str
) -> None:
    """A sum rounded to 16 bits on one side only counts half of the tokens against themselves."""
    result = run(tiny_model, tmp_path / "m", Sampling(), dtype=dtype, max_new_tokens=40)
    assert result.coupled_rank is not None
    assert (result.coupled_rank[:, -1] == 1).mean() > 0.97


def test_no_temperature_is_too_low(tiny_model: Path, tmp_path: Path) -> None:
    """Greedy text, or a refusal."""
    try:
        cold = run(tiny_model, tmp_path / "cold", Sampling(1e-40))
    except InvalidInputError:
        return
    assert texts(cold) == texts(run(tiny_model, tmp_path / "greedy", None))


# ---------------------------------------------------------------- bad values


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--temperature", "0"],
            "temperature must be a number of at least 0.0001; got 0.0; leave it out",
        ),
        (["--temperature", "-1"], "temperature must be a number of at least 0.0001; got -1.0"),
        (["--temperature", "nan"], "temperature must be a number of at least 0.0001; got nan"),
        (["--temperature", "inf"], "temperature must be a number of at least 0.0001; got inf"),
        (["--temperature", "hot"], "'hot' is not a valid float"),
        (["--temperature", "1", "--top-p", "0"], "top_p must lie in (0, 1]; got 0.0; 1 keeps all"),
        (["--temperature", "1", "--top-p", "1.5"], "top_p must lie in (0, 1]; got 1.5"),
        (["--temperature", "1", "--top-p", "-0.5"], "top_p must be a number of at least 0"),
        (
            ["--temperature", "1", "--top-p", "nan"],
            "top_p must be a number of at least 0; got nan",
        ),
        (["--top-p", "0.9"], "top_p needs a temperature; got none; add --temperature, 1 for"),
        (["--seed", "3"], "seed needs a temperature; got none"),
        (["--temperature", "1", "--seed", "-1"], "seed must be 0 or more; got -1"),
        (["--temperature", "1", "--seed", "1.5"], "'1.5' is not a valid int"),
    ],
)
def test_bad_values_are_one_line_and_exit_code_2(
    tiny_model: Path, prompt_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    options: list[str], words: str,
) -> None:  # fmt: skip
    out = tmp_path / "m"
    command = ["measure", "--model", str(tiny_model), "--prompts", str(prompt_file)]
    assert run_command([*command, "--out", str(out), *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert not out.exists()


def test_sampling_by_command_is_that_of_python(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "p.txt", tmp_path / "m"
    path.write_text("\n\n".join(WORDS[:4]), encoding="utf-8")
    command = [
        "measure", "--model", str(tiny_model), "--prompts", str(path), "--out", str(out),
        "--max-new-tokens", str(TOKENS), "--threads", "1",
        "--temperature", "0.8", "--top-p", "0.9", "--seed", "4",
    ]  # fmt: skip
    assert run_command(command) == 0
    shown = capsys.readouterr().out
    assert "sampled text" in shown
    assert "coupled" in shown
    prompts = [Prompt(f"text-{n}", word) for n, word in enumerate(WORDS[:4], start=1)]
    expected = run(tiny_model, tmp_path / "python", Sampling(0.8, 0.9, 4), prompts=prompts)
    assert texts(read_measurement(out)) == texts(expected)

"""States on disk against the model's own, and files that are of another run or cut short."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ppdmodel.errors import InvalidInputError
from ppdmodel.measure.decoder.verify import Decoder, verified
from ppdmodel.measure.models.loading import LoadedModel, load_model
from ppdmodel.measure.models.sources import locate
from ppdmodel.measure.options import GenerationOptions
from ppdmodel.measure.prompts import Prompt
from ppdmodel.measure.training.hidden_states import States, collect, save
from ppdmodel.progress import Progress
from tests.support.runs import snapshot
from tests.support.trained_exits import LAYERS, TOKENS, TRAINING, forced

PROMPTS, SIZE = TRAINING[:5], 2
SETTINGS = {"prompt_format": "chat", "max_new_tokens": TOKENS}


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> tuple[LoadedModel, Decoder]:
    loaded = load_model(locate(str(tiny_model)))
    return loaded, verified(loaded.model)


def collected(model: tuple[LoadedModel, Decoder], folder: Path, **changes: Any) -> States:
    options = {"prompts": PROMPTS, "settings": SETTINGS, "generation": GenerationOptions(10, SIZE)}
    return collect(*model, folder=folder, **{**options, **changes})


@pytest.fixture(scope="module")
def states(model: tuple[LoadedModel, Decoder], tmp_path_factory: pytest.TempPathFactory) -> States:
    return collected(model, tmp_path_factory.mktemp("states"))


def everything(prompt: Tensor) -> Tensor:
    return prompt >= 0


def test_states_are_those_of_each_text_alone(states: States, plain_model: tuple[Any, Any]) -> None:
    """The last layer's by its norm, which is all that Transformers gives."""
    assert [path.name for path in states.files] == [f"00000{n}.safetensors" for n in (0, 2, 4)]
    assert states.n_prompts == len(PROMPTS)
    norm = plain_model[0].model.norm
    for number, prompt in enumerate(PROMPTS):

        def mine(owner: Tensor, number: int = number) -> Tensor:
            return owner == number

        made, below, last = forced(*plain_model, prompt.text)
        assert states.column("token_id", mine).tolist() == made
        for layer in range(LAYERS):
            found = torch.cat(list(states.layer(layer, mine)))
            if layer == LAYERS - 1:
                with torch.no_grad():
                    found = norm(found)
            torch.testing.assert_close(found, [*below, last][layer], rtol=1e-3, atol=1e-3)


def test_tokens_are_in_the_order_of_prompts(states: States) -> None:
    owners = states.column("prompt", everything).tolist()
    assert owners == sorted(owners)
    assert set(owners) == set(range(len(PROMPTS)))
    assert set(states.column("prompt", lambda p: p == 3).tolist()) == {3}


def test_raw_prompts_are_answered_without_the_template(
    model: tuple[LoadedModel, Decoder], states: States, tmp_path: Path
) -> None:
    """A first prompt written out by hand is, raw, what the template makes of it."""
    written = [Prompt("w", f"[user] {PROMPTS[0].text}\n[assistant] ")]
    raw = collected(
        model, tmp_path, prompts=written, generation=GenerationOptions(10, SIZE, raw=True)
    )
    first = states.column("token_id", lambda prompt: prompt == 0)
    assert torch.equal(raw.column("token_id", everything), first)


def test_it_stops_with_the_batch_that_has_enough_tokens(
    model: tuple[LoadedModel, Decoder], states: States, tmp_path: Path
) -> None:
    first = len(load_file(states.files[0])["token_id"])
    for most, batches in ((first, 1), (first + 1, 2)):
        found = collected(model, tmp_path / str(most), max_tokens=most)
        assert (len(found.files), found.n_prompts) == (batches, batches * SIZE)


def test_files_that_exist_are_kept(
    model: tuple[LoadedModel, Decoder], states: States, tmp_path: Path
) -> None:
    seen: list[Progress] = []
    collected(model, tmp_path, max_tokens=1)
    kept = (tmp_path / "000000.safetensors").stat().st_mtime_ns
    collected(model, tmp_path, on_progress=seen.append)
    assert (tmp_path / "000000.safetensors").stat().st_mtime_ns == kept
    for path in states.files:
        again, expected = load_file(tmp_path / path.name), load_file(path)
        assert all(torch.equal(again[name], expected[name]) for name in again.keys() | expected)
    assert seen[0] == Progress("decoding", len(load_file(states.files[0])["token_id"]), 2 / 5)
    shares = [progress.share for progress in seen]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert seen[-1].tokens == len(states.column("prompt", everything))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"settings": SETTINGS | {"dtype": "float16"}}, "with dtype 'None' instead of 'float16'"),
        ({"settings": SETTINGS | {"max_new_tokens": 9}}, "max_new_tokens '10' instead of '9'"),
        ({"generation": GenerationOptions(10, 3)}, "with batch_size '2' instead of '3'"),
    ],
)
def test_states_of_another_run_are_refused(
    model: tuple[LoadedModel, Decoder], states: States, changes: dict[str, Any], words: str
) -> None:
    folder = states.files[0].parent
    before = snapshot(folder)
    with pytest.raises(InvalidInputError) as caught:
        collected(model, folder, **changes)
    assert f"the out folder must hold this same training; got {folder}" in str(caught.value)
    assert words in str(caught.value)
    assert snapshot(folder) == before


def test_a_setting_that_an_earlier_version_did_not_know_was_none(
    model: tuple[LoadedModel, Decoder], states: States
) -> None:
    folder = states.files[0].parent
    before = snapshot(folder)
    again = collected(model, folder, settings=SETTINGS | {"system": None})
    assert again.files == states.files
    assert snapshot(folder) == before
    with pytest.raises(InvalidInputError, match="with system 'None' instead of 'be brief'"):
        collected(model, folder, settings=SETTINGS | {"system": "be brief"})


def test_a_prompt_that_does_not_fit_is_named_before_anything_is_written(
    model: tuple[LoadedModel, Decoder], tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError, match=r"context of 256; got .* for prompt 'long'"):
        collected(model, tmp_path, prompts=[*PROMPTS, Prompt("long", "a" * 250)])
    assert not list(tmp_path.iterdir())


def test_a_saved_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "states.safetensors"
    save({"x": torch.arange(3)}, path, {"seed": "1"})
    assert [found.name for found in path.parent.iterdir()] == [path.name]
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"seed": "1"}
        assert file.get_tensor("x").tolist() == [0, 1, 2]


def test_a_file_that_is_cut_off_is_never_read_as_states(
    model: tuple[LoadedModel, Decoder], tmp_path: Path
) -> None:
    """Writing is atomic, so only damage from outside makes one; it is not answered over."""
    collected(model, tmp_path, max_tokens=1)
    path = tmp_path / "000000.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    before = snapshot(tmp_path)
    with pytest.raises((InvalidInputError, SafetensorError)):
        collected(model, tmp_path)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("damage", ["cut short", "empty", "a tensor less", "other shapes"])
def test_a_damaged_file_is_named_and_made_again_once_removed(
    model: tuple[LoadedModel, Decoder], states: States, tmp_path: Path, damage: str
) -> None:
    path = tmp_path / states.files[0].name
    whole = states.files[0].read_bytes()
    with safe_open(states.files[0], "pt") as file:
        tensors, about = load_file(states.files[0]), file.metadata()
    if damage in ("cut short", "empty"):
        path.write_bytes(whole[:-9] if damage == "cut short" else b"")
    elif damage == "a tensor less":
        save({name: tensors[name] for name in ("hidden", "token_id")}, path, about)
    else:
        save(tensors | {"prompt": tensors["prompt"][:-1]}, path, about)
    with pytest.raises(InvalidInputError, match=f"must be whole; got {path} .*remove it, and it"):
        collected(model, tmp_path, max_tokens=1)
    path.unlink()
    collected(model, tmp_path, max_tokens=1)
    again = load_file(path)
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())

"""Ideal times by hand, beside decoding speeds that others measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ppdmodel import optimize
from ppdmodel.decide.hardware import Device, device, published_decoding, shape
from ppdmodel.decide.prediction import predicted_latency_s, predicted_plain_latency_s
from ppdmodel.decide.roofline import (
    MATRICES,
    carried_over,
    ideal_times,
    roofline,
    shape_from_config,
)
from ppdmodel.errors import InvalidInputError
from ppdmodel.results.timing import Timing
from tests.pipeline.test_prediction_error import a_calibration

BIG = {
    "num_hidden_layers": 80,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
}


def of_70b(**options: float) -> Timing:
    return roofline(shape("Llama 2 70B"), device("H100 SXM"), **options)  # type: ignore[arg-type]


def test_small_batches_wait_for_memory_and_large_ones_for_arithmetic() -> None:
    """By hand: 855 638 016 weights a layer, 2 bytes each over 3.35e12 B/s, 2 operations each."""
    timing = roofline(shape("Llama 2 70B"), device("H100 SXM"), ks=(1, 32, 1024))
    weights = 2 * 8192**2 + 2 * 8192 * 1024 + 3 * 8192 * 28672
    assert weights == 855_638_016
    of_batch = {k: terms["batch_layer_time_s"][0].value for k, terms in timing.by_k.items()}
    assert of_batch[1] == of_batch[32] == weights * 2 / 3.35e12
    assert of_batch[1024] == pytest.approx(2 * weights * 1024 / 989e12)
    assert of_batch[1024] > of_batch[32]
    head = 32000 * 8192 * 2 / 3.35e12
    assert timing.terms["head_time_s"].value == head
    assert predicted_plain_latency_s(timing) == pytest.approx(80 * of_batch[1] + head)
    assert timing.terms["plain_latency_s"].value == pytest.approx(80 * of_batch[1] + head)
    halves = roofline(shape("Llama 2 70B"), device("H100 SXM"), units_per_process=2)
    assert predicted_plain_latency_s(halves) == pytest.approx((80 * of_batch[1] + head) / 2)


def test_times_go_with_the_bytes() -> None:
    model, slow = shape("Llama 2 7B"), Device(1e12, 1e15, "made up")
    assert ideal_times(model, slow)[0] == model.layer_weights * 2 / 1e12
    assert ideal_times(model, slow, bytes_per_weight=0.5)[1] == model.head_weights / 2 / 1e12
    with pytest.raises(InvalidInputError, match="bytes_per_second must be a positive"):
        ideal_times(model, Device(0, 1e15, "made up"))


def test_times_are_of_two_units_and_an_exit_in_the_middle() -> None:
    shallow = replace(shape("Llama 2 70B"), layers=1)
    for timing, middle in ((of_70b(), 40), (roofline(shallow, device("H100 SXM")), 1)):
        assert (timing.units, timing.exit_layers) == (2, (middle,))
        samples = timing.samples["by_k"]["1"]
        assert samples == {name: [[t.value] for t in each] for name, each in timing.by_k[1].items()}


def test_a_link_costs_ppd_one_message_and_splitting_two_a_layer() -> None:
    near, far = of_70b(), of_70b(link_time_s=1e-5)
    split = far.terms["split_latency_s"].value - near.terms["split_latency_s"].value
    assert split == pytest.approx(161 * 1e-5)
    ppd = predicted_latency_s(far, 1.0, 60, 3) - predicted_latency_s(near, 1.0, 60, 3)
    assert float(ppd) == pytest.approx(1e-5)


def test_beside_published_decoding_speeds() -> None:
    """Ideal times are a lower limit: within a factor of 2 of what was measured on one device."""
    rows = published_decoding()
    assert len(rows) >= 3
    for row in rows:
        assert row["source"]
        timing = roofline(
            shape(row["model"]),
            device(row["device"]),
            bytes_per_weight=row["bytes_per_weight"],
            units_per_process=row["units"],
        )
        share = predicted_plain_latency_s(timing) * row["tokens_per_s"]
        assert share < 1, "nothing is faster than its memory"
        if row["units"] == 1:
            assert share > 0.45


def test_a_config_gives_the_shape(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(BIG))
    found = shape_from_config(tmp_path)
    known = shape("Llama 2 70B")
    assert (found.layers, found.layer_weights, found.head_weights) == (
        known.layers,
        known.layer_weights,
        known.head_weights,
    )
    assert found.source == str(tmp_path / "config.json")
    large = BIG | {"num_hidden_layers": 1000, "_name_or_path": "a/model", "head_dim": 64}
    (tmp_path / "config.json").write_text(json.dumps({"text_config": large}))
    found = shape_from_config(tmp_path)
    assert found.layer_weights < known.layer_weights
    assert (found.layers, found.source) == (1000, "a/model")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**BIG, "num_local_experts": 8}, "the config must be of a dense decoder"),
        ({k: v for k, v in BIG.items() if k != "vocab_size"}, "the config must have vocab_size"),
        ({**BIG, "hidden_size": -1}, "hidden_size must be a positive integer; got -1"),
        ({**BIG, "num_hidden_layers": 1001}, "at most 1000 layers; got 64 heads for 8 and 1001"),
        ([], "a config must be one JSON object"),
    ],
)
def test_a_wrong_config_is_named(tmp_path: Path, config: object, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    with pytest.raises(InvalidInputError, match=message):
        shape_from_config(path)


@pytest.mark.parametrize("build", sorted(sum(MATRICES.values(), ())))
def test_the_weights_of_each_build_are_those_of_its_model(tmp_path: Path, build: str) -> None:
    """Counted from the parameters that Transformers gives it, vectors left out."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "hidden_size": 96, "intermediate_size": 320, "num_hidden_layers": 2, "vocab_size": 500,
        "num_attention_heads": 8, "num_key_value_heads": 4, "pad_token_id": 0, "head_dim": 12,
    }  # fmt: skip
    config = AutoConfig.for_model(build, **sizes)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    lists = (part for part in model.modules() if isinstance(part, torch.nn.ModuleList))
    layers = next(part for part in lists if len(part) == 2)
    matrices = [sum(p.numel() for p in layer.parameters() if p.ndim > 1) for layer in layers]
    config.save_pretrained(tmp_path)
    found = shape_from_config(tmp_path)
    assert [found.layer_weights] * 2 == matrices
    assert found.head_weights == model.get_output_embeddings().weight.numel()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "weights are counted here; got model_type 'bert' in"),
        ({"model_type": "mamba2"}, "got model_type 'mamba2' in"),
        ({"model_type": "falcon"}, "got model_type 'falcon' in"),
        ({"model_type": "gemma4_text"}, "got model_type 'gemma4_text' in"),
        ({"model_type": ["llama"]}, r"got model_type \['llama'\] in"),
        ({"model_type": None}, "got model_type None in"),
        (
            {"quantization_config": {"quant_method": "fp8"}},
            "not quantized; got quantization_config",
        ),
    ],
)
def test_a_config_of_other_weights_is_named(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"text_config": BIG | change}))
    with pytest.raises(InvalidInputError, match=message):
        shape_from_config(tmp_path)


def test_a_config_has_each_key_once(tmp_path: Path) -> None:
    text = json.dumps(BIG).replace("{", '{"hidden_size": 4096, ', 1)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InvalidInputError, match="the key 'hidden_size' twice in one object"):
        shape_from_config(tmp_path)


def test_no_config_and_no_number(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="the config must exist"):
        shape_from_config(tmp_path / "nowhere.json")
    with pytest.raises(
        InvalidInputError, match="bytes_per_weight must be a positive number; got 0"
    ):
        of_70b(bytes_per_weight=0)
    with pytest.raises(InvalidInputError, match="link_time_s"):
        of_70b(link_time_s=-1)


def test_rates_are_carried_over_by_relative_depth() -> None:
    calibration = a_calibration(12)
    carried = carried_over(calibration, of_70b())
    assert carried.layers == 80
    assert carried.p_correct.shape == (80, 3)
    for new, old in ((80, 30), (40, 15), (8, 3)):
        assert carried.p_correct[new - 1] == pytest.approx(calibration.p_correct[old - 1])
    between = carried.p_correct[43, 0]  # 44/80 of the depth is layer 16.5 of 30
    assert between == pytest.approx(calibration.p_correct[15:17, 0].mean())
    assert carried.exit_layers == tuple(range(3, 80)), "none before the first measured layer"
    same = carried_over(calibration, roofline(shape("SmolLM2 135M"), device("H100 SXM")))
    assert np.array_equal(same.p_correct, calibration.p_correct)


def test_a_decision_on_paper_says_so() -> None:
    decision = optimize(carried_over(a_calibration(12), of_70b()), max_compute=9)
    assert decision.costs == "ideal times"
    assert decision.layers == 80
    setting = decision.choices[0].setting
    assert setting is not None
    assert setting.normalized_latency.value < 1
    assert decision.split_latency == pytest.approx(0.5)


def test_a_config_that_is_no_json_and_one_of_uneven_heads(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("{")
    with pytest.raises(InvalidInputError, match="a config must be JSON; got"):
        shape_from_config(path)
    path.write_text(json.dumps(BIG | {"num_key_value_heads": 5}))
    with pytest.raises(InvalidInputError, match="a config must have whole groups of heads and"):
        shape_from_config(tmp_path)


def test_one_token_is_one_row_of_arithmetic() -> None:
    weak = Device(1e15, 1e9, "made up")
    timing = roofline(shape("Llama 2 7B"), weak)
    model = shape("Llama 2 7B")
    assert timing.terms["layer_time_s"].value == pytest.approx(2 * model.layer_weights / 1e9)
    assert ideal_times(model, weak) == ideal_times(model, weak, rows=1)
    assert timing.terms["head_time_s"].value == pytest.approx(2 * model.head_weights / 1e9)


def test_every_exit_of_a_model_that_is_no_deeper_is_kept() -> None:
    timing = roofline(shape("SmolLM2 135M"), device("H100 SXM"))
    calibration = replace(a_calibration(12), exit_layers=None)
    assert carried_over(calibration, timing).exit_layers == tuple(range(1, 30))
    assert carried_over(calibration, of_70b()).exit_layers == tuple(range(3, 80))

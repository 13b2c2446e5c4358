"""Options check themselves when they are made."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ppdmodel.cli.measure import measure_command
from ppdmodel.cli.train_exits import train_exits_command
from ppdmodel.errors import InvalidInputError
from ppdmodel.measure import GenerationOptions, HardwareOptions, TrainingOptions, train_exits


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        (GenerationOptions, {"max_new_tokens": 0}, "max_new_tokens must be a positive integer"),
        (GenerationOptions, {"batch_size": -1}, "batch_size must be a positive integer; got -1"),
        (HardwareOptions, {"n_threads": 0}, "n_threads must be a positive integer; got 0"),
        (HardwareOptions, {"dtype": "int8"}, "dtype must be one of float32"),
        (HardwareOptions, {"device": "nonsense"}, "device must be one that this torch can use"),
        (HardwareOptions, {"device_map": "nonsense"}, "device_map must be one of auto"),
        (TrainingOptions, {"objective": "mse"}, "objective must be ridge or kl; got 'mse'"),
        (TrainingOptions, {"epochs": 0}, "epochs must be a positive integer; got 0"),
        (TrainingOptions, {"max_tokens": 0}, "max_tokens must be a positive integer; got 0"),
    ],
)
def test_bad_options_are_named(kind: Any, given: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        kind(**given)
    assert words in str(caught.value)


def test_threads_are_set_for_a_while() -> None:
    before = torch.get_num_threads()
    with HardwareOptions(n_threads=before + 1).threads():
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with HardwareOptions().threads():
        assert torch.get_num_threads() == before


def test_the_device_is_the_one_that_is_named_or_a_gpu_if_there_is_one() -> None:
    for device in ("cpu", "cpu:0"):
        assert HardwareOptions(device=device).chosen_device == device
    usual = "cuda" if torch.cuda.is_available() else "cpu"
    assert HardwareOptions().chosen_device == usual


def test_what_provenance_says_of_them() -> None:
    assert GenerationOptions(raw=True).provenance == {
        "prompt_format": "raw", "system": None, "template_args": None,
    }  # fmt: skip
    told = GenerationOptions(system="Be brief.", template_args={"b": 1, "a": [False]})
    assert told.provenance == {
        "prompt_format": "chat", "system": "Be brief.", "template_args": {"a": [False], "b": 1},
    }  # fmt: skip
    ridge, kl = TrainingOptions(), TrainingOptions("kl", [4, 2, 2], 90, 5, 300)
    assert ridge.provenance == {
        "max_tokens": None, "objective": "ridge", "epochs": None, "exit_layers": None,
        "vocabulary": None,
    }  # fmt: skip
    assert kl.provenance == {
        "max_tokens": 90, "objective": "kl", "epochs": 5, "exit_layers": [2, 4],
        "vocabulary": 300,
    }  # fmt: skip


def test_what_is_not_given_is_what_the_commands_take() -> None:
    def default(command: Callable[..., Any], name: str) -> Any:
        return inspect.signature(command).parameters[name].default

    training = TrainingOptions()
    for command, generation in (
        (measure_command, GenerationOptions()),
        (train_exits_command, default(train_exits, "generation")),
    ):
        assert default(command, "max_new_tokens") == generation.max_new_tokens
        assert default(command, "batch_size") == generation.batch_size
        assert default(command, "raw") is generation.raw is False
        assert default(command, "dtype") == HardwareOptions().dtype
    for name in ("objective", "epochs"):
        assert default(train_exits_command, name) == getattr(training, name)

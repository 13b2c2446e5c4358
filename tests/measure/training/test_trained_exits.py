"""Trained exits and shortlists on disk; how they are made and damaged is in test_train."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ppdmodel.errors import InvalidInputError
from ppdmodel.measure.training.trained_exits import TrainedExits, most_frequent


def test_the_most_frequent_tokens_in_ascending_order() -> None:
    counts = torch.tensor([0, 3, 0, 9, 3, 1])
    assert most_frequent(counts, 1).tolist() == [3]
    assert most_frequent(counts, 2).tolist() == [1, 3], "of equals the smaller id"
    assert most_frequent(counts, 5).tolist() == [0, 1, 3, 4, 5]
    assert most_frequent(counts, 6).tolist() == list(range(6))


def test_a_shortlist_alone_is_of_logit_exits() -> None:
    assert TrainedExits({}, "0", {}, {}, torch.tensor([1])).kind == "logit"
    assert TrainedExits({}, "0", {}, {}).kind == "trained"


def test_a_shortlist_is_of_one_tokenizer_and_of_random_weights_that_have_none() -> None:
    about = {"shortlist": {"tokenizer_sha256": "0"}}
    listed = TrainedExits({}, "0", {}, about, torch.tensor([1]))
    model: Any = SimpleNamespace(tokenizer=None, source=SimpleNamespace(name="m"))
    listed.check_tokenizer(model)
    model.tokenizer = SimpleNamespace(get_vocab=lambda: {"a": 1})
    with pytest.raises(InvalidInputError, match="must be of the model's tokenizer"):
        listed.check_tokenizer(model)

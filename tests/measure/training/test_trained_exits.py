"""Trained exits and shortlists on disk; how they are made and damaged is in test_train."""

from __future__ import annotations

import torch

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

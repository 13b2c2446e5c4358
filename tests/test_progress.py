"""The progress of a part is reported as that of the whole run."""

from __future__ import annotations

import pytest

from ppdmodel.progress import Progress, part_of, parts_of


def test_a_part_is_placed_in_the_whole() -> None:
    seen: list[Progress] = []
    report = part_of(seen.append, 2 / 7, 4 / 7, tokens=30)
    for tokens, share in ((0, 0.0), (5, 0.25), (20, 1.0)):
        report(Progress("decoding", tokens, share))
    assert [p.stage for p in seen] == ["decoding"] * 3
    assert [p.tokens for p in seen] == [30, 35, 50]
    assert [p.share for p in seen] == pytest.approx([2 / 7, 2.5 / 7, 4 / 7])


def test_parts_that_follow_each_other_never_go_back() -> None:
    seen: list[Progress] = []
    for n in range(49):
        report = part_of(seen.append, n / 49, (n + 1) / 49)
        for share in (0.0, 0.3, 1.0):
            report(Progress("decoding", 0, share))
    shares = [p.share for p in seen]
    assert {p.tokens for p in seen} == {0}, "no tokens came before, unless it is said"
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_equal_parts_share_the_whole() -> None:
    seen: list[Progress] = []
    for report in parts_of(seen.append, 4):
        report(Progress("choosing", 0, 0.5))
    assert [p.share for p in seen] == pytest.approx([1 / 8, 3 / 8, 5 / 8, 7 / 8])

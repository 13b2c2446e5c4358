"""Messages on the board: sequence numbers, guesses that are found, and the next text."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ppdmodel.pipeline import board as board_module
from ppdmodel.pipeline.board import NO_MATCH, UNREAD, Board, new_board

TOKENS, UNITS, K = 6, 3, 4


@pytest.fixture
def boards() -> tuple[Board, Board]:
    """Two views of the same memory, as two processes have them."""
    memory = new_board(TOKENS, UNITS, K, 8, torch.bfloat16)
    boards = Board(memory), Board(memory)
    boards[0].clear()
    return boards


def test_a_new_board_says_nothing(boards: tuple[Board, Board]) -> None:
    _, board = boards
    assert board.guesses.shape == (UNITS, TOKENS, K)
    assert board.exit_state.shape == (TOKENS, 8)
    assert board.exit_state.dtype == torch.bfloat16
    assert len(board.owner) == len(board.row) == TOKENS + 1, "the last verdict has a next one too"
    assert not board.verdict.any()
    assert board.guessed.tolist() == [-1] * UNITS


def test_guesses_are_found_by_token_and_id(boards: tuple[Board, Board]) -> None:
    writer, reader = boards
    writer.publish_guesses(1, 0, np.array([7, 8]))
    writer.publish_guesses(2, 0, np.array([9, 5, 6]))
    assert reader.guessed.tolist() == [-1, 0, 0]
    assert reader.find_match(0, 8, 0) == (1, 1)
    assert reader.find_match(0, 9, 0) == (2, 0)
    assert reader.find_match(0, 6, 0) == (2, 2)
    assert reader.find_match(0, 10, 0) == (0, NO_MATCH)
    assert reader.find_match(1, 8, 0) == (0, NO_MATCH), "guesses of another token"
    assert reader.find_match(0, 8, 1) == (1, NO_MATCH), "the verifier's own older guesses"
    assert reader.find_match(0, 0, 0) == (0, NO_MATCH), "zeros after the guesses are none"


def test_fewer_guesses_hide_older_ones(boards: tuple[Board, Board]) -> None:
    writer, reader = boards
    writer.publish_guesses(1, 2, np.array([1, 2, 3]))
    writer.publish_guesses(1, 2, np.array([4]))
    assert reader.find_match(2, 2, 0) == (0, NO_MATCH)
    assert reader.find_match(2, 4, 0) == (1, 0)


def test_right_guesses_are_counted_of_all_units_in_time_or_not(boards: tuple[Board, Board]) -> None:
    writer, reader = boards
    writer.publish_guesses(1, 0, np.array([7, 8]))
    writer.publish_guesses(2, 0, np.array([9]))
    writer.publish_guesses(1, 1, np.array([4, 5, 6]))
    writer.publish_verdict(0, 9, owner=2, row=0, now_ns=1)
    writer.publish_verdict(1, 6, owner=2, row=NO_MATCH, now_ns=2)
    writer.publish_verdict(2, 0, owner=2, row=NO_MATCH, now_ns=3)
    writer.publish_verdict(3, 3, owner=2, row=NO_MATCH, now_ns=4)
    writer.publish_guesses(1, 3, np.array([1, 3]))
    assert reader.guessed_right(4).tolist() == [True, True, False, True]
    assert reader.guessed_right(1).tolist() == [True]
    writer.publish_guesses(1, 1, np.array([4]))
    assert not reader.guessed_right(2)[1], "what is behind the guesses is none of them"
    writer.clear()
    writer.publish_verdict(0, 9, owner=2, row=NO_MATCH, now_ns=1)
    assert not reader.guessed_right(1).any(), "guesses of an earlier text"


def test_a_verdict_names_the_next_process(boards: tuple[Board, Board]) -> None:
    writer, reader = boards
    writer.publish_verdict(3, 0, owner=2, row=1, now_ns=123)
    assert reader.verdict.tolist() == [0, 0, 0, 1, 0, 0], "ids plus 1: the token with id 0 is known"
    assert reader.verdict_ns[3] == 123
    assert (reader.owner[4], reader.row[4]) == (2, 1)
    assert not reader.owner[:4].any()


def test_a_cleared_board_is_as_new(boards: tuple[Board, Board]) -> None:
    writer, reader = boards
    writer.publish_guesses(1, 0, np.array([7]))
    writer.publish_verdict(0, 5, owner=1, row=0, now_ns=1)
    writer.stop[0], writer.abandoned[0], writer.progress[2] = 1, 1, 9
    writer.clear()
    for name in ("stop", "abandoned", "progress", "verdict", "owner", "row"):
        array = getattr(reader, name)
        assert not array.any()
    assert reader.find_match(0, 7, 0) == (0, NO_MATCH)
    assert (reader.n_guesses == UNREAD).all()


def test_the_payload_is_written_before_the_message(
    boards: tuple[Board, Board], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the fence, everything but the sequence number itself is there."""
    writer, reader = boards
    seen: list[tuple[int, ...]] = []

    def at_verdict() -> None:
        seen.append((int(reader.owner[1]), int(reader.row[1]), int(reader.verdict[0])))

    monkeypatch.setattr(board_module, "fence", at_verdict)
    writer.publish_verdict(0, 5, owner=2, row=1, now_ns=1)
    assert seen == [(2, 1, 0)]
    seen.clear()

    def at_guesses() -> None:
        seen.append((*reader.guesses[1, 3, :2].tolist(), int(reader.guessed[1])))

    monkeypatch.setattr(board_module, "fence", at_guesses)
    writer.publish_guesses(1, 3, np.array([7, 8]))
    assert seen == [(7, 8, -1)]
    assert reader.guessed[1] == 3

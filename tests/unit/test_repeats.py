"""Rows of random tokens that repeat, and which of their targets can be known."""

import pytest
import torch
from helpers import rng

from minillm.data.packing import IGNORE
from minillm.data.repeats import repeats


def lag_of(row, lags):
    """The smallest lag that explains a whole row."""
    return next(lag for lag in range(1, lags[1] + 1) if torch.equal(row[lag:], row[:-lag]))


def test_every_row_repeats_with_a_lag_of_its_own():
    batch = repeats(200, 31, 50, (5, 9), rng())
    rows = torch.cat((batch.tokens, batch.targets[:, -1:]), dim=1)
    assert torch.equal(batch.targets, rows[:, 1:])
    found = [lag_of(row, (5, 9)) for row in rows]
    assert set(found) == {5, 6, 7, 8, 9}
    assert rows.unique().tolist() == list(range(50))


def test_only_what_was_seen_a_lag_earlier_counts():
    lags = (5, 9)
    everything = repeats(50, 31, 1000, lags, rng(1))
    second = repeats(50, 31, 1000, lags, rng(1), second_round_only=True)
    assert torch.equal(everything.tokens, second.tokens)
    for row, all_targets, targets in zip(
        second.tokens, everything.targets, second.targets, strict=True
    ):
        lag = lag_of(torch.cat((row, all_targets[-1:])), lags)
        assert targets[:lag].eq(IGNORE).all()
        assert torch.equal(targets[lag:], all_targets[lag:])
        assert torch.equal(targets[lag:], row[1 : len(row) - lag + 1])


@pytest.mark.parametrize("lags", [(0, 4), (5, 4), (4, 31)])
def test_lags_that_make_no_second_round_are_refused(lags):
    with pytest.raises(ValueError, match="smallest"):
        repeats(2, 31, 8, lags, rng())

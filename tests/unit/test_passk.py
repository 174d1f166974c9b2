"""What k tries are worth: formulas against the enumeration of all subsets."""

from itertools import combinations
from math import comb

import pytest
import torch

from minillm.evaluate.passk import best_of_k, coverage, pass_at_k, vote_of_k
from minillm.evaluate.search import vote


def subsets(n, k):
    return list(combinations(range(n), k))


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_pass_at_k_is_the_mean_over_all_subsets(n):
    for c in range(n + 1):
        for k in range(1, n + 1):
            lucky = sum(any(i < c for i in chosen) for chosen in subsets(n, k))  # first c right
            assert pass_at_k(n, c, k) == pytest.approx(lucky / comb(n, k))


def test_pass_at_k_by_hand():
    """Of the pairs of three samples, ab and ac hold the right one a, bc does not."""
    assert pass_at_k(3, 1, 2) == pytest.approx(2 / 3)
    assert pass_at_k(1000, 0, 5) == 0
    assert pass_at_k(1000, 996, 5) == 1
    assert 0 < pass_at_k(100_000, 1, 10) < 1.1e-4  # no overflow


def test_plugging_in_the_rate_is_biased_and_the_formula_is_not():
    """Over all outcomes of n = 4 fair tries, the mean of pass@2 is 1 − ¼, not more or less."""
    weights = [comb(4, c) / 16 for c in range(5)]
    mean = sum(w * pass_at_k(4, c, 2) for c, w in enumerate(weights))
    plugged = sum(w * (1 - (1 - c / 4) ** 2) for c, w in enumerate(weights))
    assert mean == pytest.approx(0.75)
    assert plugged < 0.7


@pytest.mark.parametrize(("n", "c", "k"), [(3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4)])
def test_pass_at_k_refuses(n, c, k):
    with pytest.raises(ValueError, match=f"n={n}, c={c}, k={k}"):
        pass_at_k(n, c, k)


def test_coverage_averages_over_problems():
    right = torch.tensor([[True, False, False], [False, False, False]])
    assert coverage(right, 2) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="bool"):
        coverage(right.float(), 2)
    with pytest.raises(ValueError, match="k=4 of 3"):
        coverage(right, 4)


@pytest.mark.parametrize("levels", [100, 3])  # 3: many equal scores
def test_best_of_k_is_the_mean_over_all_subsets(levels):
    random = torch.Generator().manual_seed(0)
    right = torch.rand(4, 7, generator=random) < 0.4
    scores = torch.randint(levels, (4, 7), generator=random).float() - 1
    for k in range(1, 8):
        total = 0.0
        for row, values in zip(right.tolist(), scores.tolist(), strict=True):
            for chosen in subsets(7, k):
                top = max(values[i] for i in chosen)
                best = [row[i] for i in chosen if values[i] == top]  # a tie is drawn by lot
                total += sum(best) / len(best)
        assert best_of_k(right, scores, k) == pytest.approx(total / 4 / comb(7, k))


def test_a_perfect_verifier_reaches_the_coverage_and_a_blind_one_the_mean():
    right = torch.rand(5, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    for k in (1, 3, 6):
        assert best_of_k(right, right.float(), k) == pytest.approx(coverage(right, k))
        assert best_of_k(right, torch.zeros(5, 6), k) == pytest.approx(coverage(right, 1))
    with pytest.raises(ValueError, match="expected the same"):
        best_of_k(right, torch.zeros(5, 5), 2)


def test_vote_of_k():
    answers = [["3", "3", "5", None], ["1", "2", "2", "2"]]
    generator = torch.Generator().manual_seed(0)
    assert vote_of_k(answers, ["3", "1"], 4, generator) == 0.5
    heavy = [[1, 1, 3, 9], [4, 1, 1, 1]]
    assert vote_of_k(answers, ["3", "1"], 4, generator, weights=heavy) == 0.5
    assert vote_of_k(answers, ["5", "1"], 4, generator, weights=heavy) == 1
    # Of the four single samples of each problem, two and one are right.
    one = vote_of_k(answers, ["3", "1"], 1, generator, n_draws=2000)
    assert one == pytest.approx(3 / 8, abs=0.03)
    # Pairs that come first in the drawn order: every subset must be drawn, not the first k.
    assert vote_of_k([["1", "2", "2", "2"]], ["2"], 2, generator, n_draws=400) > 0.6
    with pytest.raises(ValueError, match="k=5 of 4"):
        vote_of_k(answers, ["3", "1"], 5, generator)
    with pytest.raises(ValueError, match="2 problems and 1 truths"):
        vote_of_k(answers, ["3"], 2, generator)


def test_vote():
    assert vote(["a", "b", "b", None, None, None]) == "b"
    assert vote(["a", "b", "b", "a"]) == "a"
    assert vote(["a", "b", "b"], [3.0, 1.0, 1.0]) == "a"
    assert vote([None, None]) is None
    assert vote([]) is None
    with pytest.raises(ValueError, match="at least 0"):
        vote(["a"], [-1.0])
    with pytest.raises(ValueError, match="one each"):
        vote(["a"], [1.0, 2.0])

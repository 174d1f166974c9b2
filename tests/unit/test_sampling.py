"""Samplers: hand-computed filters, distributions against their target, and what is refused."""

import math

import pytest
import torch

from minillm.infer.sampling import (
    Sampler,
    draw,
    min_p,
    repetition_penalty,
    temperature,
    top_k,
    top_p,
)

# Probabilities 0.5, 0.3, 0.15, 0.05 in a shuffled order, so that sorting has to be undone.
LOGITS = torch.tensor([[0.05, 0.5, 0.15, 0.3]]).log()


def kept(logits):
    return [row.isfinite().nonzero().flatten().tolist() for row in logits]


def test_temperature_two_takes_the_square_root_of_the_odds():
    odds = temperature(LOGITS, 2.0).softmax(-1)
    assert odds[0, 1] / odds[0, 0] == pytest.approx(math.sqrt(10))


@pytest.mark.parametrize(
    ("k", "expected"), [(1, [1]), (2, [1, 3]), (3, [1, 2, 3]), (9, [0, 1, 2, 3])]
)
def test_top_k_keeps_the_k_largest(k, expected):
    assert kept(top_k(LOGITS, k)) == [expected]


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (0.01, [1]),
        (0.49, [1]),
        (0.51, [1, 3]),
        (0.81, [1, 2, 3]),
        (0.96, [0, 1, 2, 3]),
        (1.0, [0, 1, 2, 3]),
    ],
)
def test_top_p_keeps_the_token_that_crosses_p(p, expected):
    assert kept(top_p(LOGITS, p)) == [expected]


@pytest.mark.parametrize(
    ("p", "expected"), [(0.05, [0, 1, 2, 3]), (0.2, [1, 2, 3]), (0.4, [1, 3]), (1.0, [1])]
)
def test_min_p_is_relative_to_the_largest(p, expected):
    assert kept(min_p(LOGITS, p)) == [expected]


def test_filters_treat_rows_separately():
    logits = torch.stack([LOGITS[0], LOGITS[0].flip(0), torch.zeros(4)])
    assert kept(top_p(logits, 0.7)) == [[1, 3], [0, 2], [0, 1, 2]]
    assert kept(min_p(logits, 0.5)) == [[1, 3], [0, 2], [0, 1, 2, 3]]


def test_repetition_penalty_lowers_both_signs_once_and_ignores_padding():
    logits = torch.tensor([[2.0, -2.0, 1.0], [2.0, -2.0, 1.0]])
    history = torch.tensor([[0, 1, 0], [2, -1, -1]])
    expected = torch.tensor([[1.0, -4.0, 1.0], [2.0, -2.0, 0.5]])
    assert torch.equal(repetition_penalty(logits, history, 2.0), expected)


def test_draw_inverts_the_cumulative_distribution_and_never_takes_probability_zero():
    probabilities = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]]).expand(5, -1)
    uniforms = torch.tensor([0.0, 0.2499, 0.25, 0.9, 1.0], dtype=torch.float64)
    assert draw(probabilities, uniforms).tolist() == [1, 1, 3, 3, 3]


def test_draw_does_not_depend_on_the_other_rows():
    generator = torch.Generator().manual_seed(1)
    probabilities = torch.rand(7, 50, generator=generator)
    uniforms = torch.rand(7, generator=generator, dtype=torch.float64)
    together = draw(probabilities, uniforms)
    alone = [draw(probabilities[i : i + 1], uniforms[i : i + 1]).item() for i in range(7)]
    assert together.tolist() == alone


@pytest.mark.parametrize(
    "sampler",
    [
        Sampler(),
        Sampler(temperature=0.7),
        Sampler(temperature=1.6, top_k=9),
        Sampler(top_p=0.8),
        Sampler(temperature=1.3, min_p=0.1),
        Sampler(top_k=15, top_p=0.9, min_p=0.02, repetition_penalty=1.4),
    ],
)
def test_frequencies_match_the_target_distribution(sampler):
    """χ² over 40,000 draws; its mean is the degrees of freedom, its deviation √(2·freedom).

    Five deviations above the mean is a false alarm in about one seed of 10⁵.
    """
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(1, 20, generator=generator)
    history = torch.tensor([[0, 1, 2, 3]])
    target = sampler.probabilities(logits, history)[0].double()
    n = 40_000
    draws = sampler(logits.expand(n, -1), generator, history.expand(n, -1))
    counts = draws.bincount(minlength=20).double()
    possible = target > 0
    assert counts[~possible].sum() == 0
    expected = n * target[possible] / target.sum()
    chi_squared = ((counts[possible] - expected).square() / expected).sum()
    freedom = possible.sum() - 1
    assert chi_squared < freedom + 5 * (2 * freedom).sqrt()


def test_temperature_zero_is_greedy_and_uses_no_randomness():
    sampler = Sampler(temperature=0)
    logits = torch.randn(6, 11, generator=torch.Generator().manual_seed(2))
    assert torch.equal(sampler(logits), logits.argmax(-1))
    assert torch.equal(sampler.probabilities(logits).argmax(-1), logits.argmax(-1))
    assert Sampler(temperature=0, repetition_penalty=9.0)(LOGITS, None, torch.tensor([[1]])) == 3


def test_the_same_generator_state_gives_the_same_tokens():
    logits = torch.randn(50, 40, generator=torch.Generator().manual_seed(3))
    first = Sampler()(logits, torch.Generator().manual_seed(4))
    assert torch.equal(first, Sampler()(logits, torch.Generator().manual_seed(4)))
    assert not torch.equal(first, Sampler()(logits, torch.Generator().manual_seed(5)))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"temperature": -0.5}, "0 .greedy. or more, got -0.5"),
        ({"temperature": math.nan}, "got nan"),
        ({"top_k": 0}, "at least 1, got 0"),
        ({"top_k": 2.5}, "whole number of at least 1, got 2.5"),
        ({"top_p": 0.0}, r"top_p must lie in \(0, 1\], got 0.0"),
        ({"top_p": 1.1}, "got 1.1"),
        ({"min_p": -0.1}, "min_p must lie in"),
        ({"repetition_penalty": 0.0}, "positive number, got 0.0"),
    ],
)
def test_bad_settings_are_refused_when_the_sampler_is_made(setting, words):
    with pytest.raises(ValueError, match=words):
        Sampler(**setting)


def test_bad_logits_and_histories_are_refused():
    with pytest.raises(ValueError, match="floating point"):
        top_k(torch.ones(2, 3, dtype=torch.int64), 1)
    with pytest.raises(ValueError, match="for 0 use argmax"):
        temperature(LOGITS, 0.0)
    with pytest.raises(ValueError, match=r"logits \(B, V\), got \(4,\)"):
        Sampler()(LOGITS[0])
    with pytest.raises(ValueError, match="needs history"):
        Sampler(repetition_penalty=1.2)(LOGITS)
    with pytest.raises(ValueError, match=r"got \(1, 4\) and \(2, 1\)"):
        repetition_penalty(LOGITS, torch.zeros(2, 1, dtype=torch.int64), 1.2)
    with pytest.raises(ValueError, match="history holds token 4, the vocabulary has 4"):
        repetition_penalty(LOGITS, torch.tensor([[4]]), 1.2)
    for sampler in (Sampler(), Sampler(temperature=0)):
        with pytest.raises(ValueError, match="NaN"):
            sampler(torch.tensor([[0.0, math.nan]]))

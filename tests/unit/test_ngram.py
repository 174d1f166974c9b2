"""The n-gram model against plain counting with dictionaries, and against its definition."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from minillm.model.ngram import NGram

V = 7


def line(length, seed):
    """A line of tokens with structure: the next depends on the last, with noise."""
    generator = np.random.default_rng(seed)
    ids = [0]
    for _ in range(length - 1):
        ids.append(int((2 * ids[-1] + generator.integers(0, 3)) % V))
    return ids


def estimate(ids, gram, k):
    """(count(context, token) + k) / (count(context) + kV), None if the context is unseen."""
    m = len(gram)
    grams = Counter(tuple(ids[i : i + m]) for i in range(len(ids) - m + 1))
    total = sum(count for g, count in grams.items() if g[:-1] == gram[:-1]) + k * V
    return (grams[gram] + k) / total if total else None


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("k", [0.0, 0.3])
@pytest.mark.parametrize("interpolated", [False, True])
def test_probabilities_equal_the_definition(n, k, interpolated):
    train, test = line(60, 0), line(40, 1)
    weights = None
    if interpolated:
        weights = np.arange(1, n + 1) / (n * (n + 1) / 2)
    model = NGram(n, V, add_k=k, weights=weights).fit(train)
    for i, nats in enumerate(model.nats(test).tolist()):
        gram = tuple(test[i : i + n])
        if not interpolated:
            p = estimate(train, gram, k) or 0.0
        else:
            parts = [estimate(train, gram[n - m :], k) for m in range(1, n + 1)]
            share = [w if e is not None else 0.0 for w, e in zip(weights, parts, strict=True)]
            p = sum(w * (e or 0) for w, e in zip(share, parts, strict=True)) / sum(share)
        assert math.isclose(math.exp(-nats), p, abs_tol=1e-12)


def test_log_probs_sum_to_one_and_agree_with_nats():
    train, test = line(200, 0), line(30, 1)
    for model in (NGram(3, V, add_k=0.5).fit(train), NGram(3, V).fit(train).tune(test)):
        for i in range(len(test) - 2):
            log_probs = model.log_probs(test[: i + 2])
            assert log_probs.exp().sum().item() == pytest.approx(1)
            assert -log_probs[test[i + 2]] == pytest.approx(model.nats(test)[i])


def test_a_context_at_the_very_end_of_the_text_was_never_followed():
    model = NGram(2, 3, weights=[0.5, 0.5]).fit([0, 0, 1])  # 1 is seen, but nothing after it
    assert model.log_probs([1]).exp().tolist() == pytest.approx([2 / 3, 1 / 3, 0])


def test_perplexity_of_a_uniform_guess_is_v():
    assert NGram(2, V, add_k=1e12).fit(line(50, 0)).perplexity(line(50, 1)) == pytest.approx(V)


def test_an_unseen_event_has_infinite_perplexity_without_smoothing():
    assert NGram(2, 3).fit([0, 1, 0, 1]).perplexity([0, 2]) == math.inf
    assert NGram(2, 3, add_k=1).fit([0, 1, 0, 1]).perplexity([0, 2]) == pytest.approx(5)


def test_tuned_weights_are_the_best_on_the_held_out_text():
    train, held_out = line(300, 0), line(300, 1)
    model = NGram(2, V, add_k=0.1).fit(train).tune(held_out, rounds=200)
    grid = [
        NGram(2, V, add_k=0.1, weights=[1 - w, w]).fit(train).perplexity(held_out)
        for w in np.linspace(0, 1, 101)
    ]
    assert sum(model.weights) == pytest.approx(1)
    assert model.perplexity(held_out) <= min(grid) + 1e-6


def test_counts_and_input_kinds():
    ids = [0, 1, 0, 1, 2]
    for kind in (list, np.array, torch.tensor):
        model = NGram(3, 3).fit(kind(ids))
        assert [model.count(g) for g in ([0], [0, 1], [0, 1, 2], [2, 2])] == [2, 2, 1, 0]
    big = NGram(3, 50_000).fit([49_999, 49_998, 49_999, 49_998, 49_999])
    assert big.count([49_999, 49_998, 49_999]) == 2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: NGram(0, 5), "n=0"),
        (lambda: NGram(5, 50_000), "does not fit 63 bits; lower n"),
        (lambda: NGram(2, 5, add_k=-1), "add_k=-1: expected 0 or more"),
        (lambda: NGram(2, 5, weights=[0.5, 0.6]), "expected 2 numbers ≥ 0 that sum to 1"),
        (lambda: NGram(2, 5, weights=[1.0]), "expected 2 numbers"),
        (lambda: NGram(2, 5).fit([0, 5]), "ids from 0 to 5: expected 0 to 4"),
        (lambda: NGram(3, 5).fit([0, 1]), "2 tokens: expected at least 3"),
        (lambda: NGram(2, 5).fit([[0, 1]]), r"shape \(1, 2\): expected one line"),
        (lambda: NGram(2, 5).perplexity([0, 1]), "call fit"),
        (lambda: NGram(3, 5).fit([0, 1, 2]).log_probs([1]), "expected at least 2"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()

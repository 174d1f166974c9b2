"""Rejection sampling against sorting by hand, and the policy it teaches."""

import itertools
import math

import pytest
import torch
from helpers import rng

from minillm.align.rejection import Selection, rejection_sample
from minillm.data.packing import IGNORE
from minillm.infer.rollout import rollout
from minillm.model.config import llama_config
from minillm.model.transformer import Transformer
from minillm.train.loop import train

END, LIKED = 1, 5
PROMPTS = [[2, 3], [4], [6, 7, 8]]
SETTINGS = {"max_new_tokens": 5, "stop_tokens": [END], "n_samples": 8}


def tiny():
    return Transformer(llama_config(12, d_model=16, n_layers=1, n_heads=2, max_length=20), rng())


def liking(found):
    return torch.tensor([float(row.count(LIKED)) for row in found.responses])


def spoken(found, row):
    targets = found.batch.targets[row]
    return targets[targets != IGNORE].tolist()


def test_keeps_what_sorting_by_hand_keeps():
    model = tiny()
    found = rollout(model, PROMPTS, generator=rng(3), **SETTINGS)
    kept = rejection_sample(model, PROMPTS, liking, generator=rng(3), keep=3, **SETTINGS)
    expected = []
    for i, prompt in enumerate(PROMPTS):
        rows = sorted(range(8 * i, 8 * i + 8), key=lambda row: (-liking(found)[row].item(), row))
        different = []
        for row in rows:
            if spoken(found, row) not in [text for _, text, _ in different]:
                different.append((prompt, spoken(found, row), liking(found)[row].item()))
        expected += different[:3]
    assert list(zip(kept.prompts, kept.responses, kept.rewards.tolist(), strict=True)) == expected
    # Both kinds are there, and are told apart: those that ended, and those that were cut off.
    ended = [row[-1] == END for row in kept.responses]
    assert any(ended) and not all(ended)


def test_a_response_said_twice_is_kept_once():
    kept = rejection_sample(
        tiny(), [[2]], lambda found: torch.ones(40), n_samples=40, max_new_tokens=1,
        stop_tokens=[END], keep=40, generator=rng(),
    )  # fmt: skip
    assert 1 < len(kept.responses) <= 12
    assert len(kept.responses) == len(set(map(tuple, kept.responses)))


def test_drops_what_is_not_good_enough():
    """Only the second prompt is ever answered well; the others are left out, not filled up."""

    def second_only(found):
        return torch.tensor([float(8 <= row < 16) for row in range(24)])

    kept = rejection_sample(tiny(), PROMPTS, second_only, at_least=1.0, generator=rng(), **SETTINGS)
    assert kept.prompts == [PROMPTS[1]]
    none = rejection_sample(tiny(), PROMPTS, second_only, at_least=2.0, generator=rng(), **SETTINGS)
    assert none.prompts == none.responses == [] and none.rewards.shape == (0,)


def test_best_of_n_is_as_far_from_the_policy_as_theory_says():
    """One of 8 tokens, all rewards different: the best of N has KL ln N − (N−1)/N or less."""
    model, N, trials = tiny(), 4, 4000
    order = torch.randn(12, generator=rng(5))
    kept = rejection_sample(
        model, [[2]] * trials, lambda found: order[found.batch.targets[:, 0]], n_samples=N,
        max_new_tokens=1, stop_tokens=[END], generator=rng(),
    )  # fmt: skip
    p = model(torch.tensor([[2]]))[0, -1].softmax(-1).double()
    below = torch.stack([p[order < x].sum() for x in order])
    exact = (below + p) ** N - below**N  # the best is x: all at most x, and not all below x
    counts = torch.bincount(torch.tensor([row[0] for row in kept.responses]), minlength=12)
    torch.testing.assert_close(counts / trials, exact.float(), atol=0.03, rtol=0)
    assert 0 < (exact * (exact / p).log()).sum() <= math.log(N) - (N - 1) / N


def test_batches_are_one_epoch_of_the_responses_alone():
    chosen = Selection([[2, 3], [4], [6]], [[7, END], [8], [9, 9, END]], torch.zeros(3))
    batches = list(chosen.batches(2))
    assert [len(batch.tokens) for batch in batches] == [2, 1]
    assert batches[0].tokens.tolist() == [[2, 3, 7, END], [4, 8, 0, 0]]
    assert batches[0].targets.tolist() == [
        [IGNORE, 7, END, IGNORE],
        [8, IGNORE, IGNORE, IGNORE],
    ]
    shuffled = [batch.tokens[0, 0].item() for batch in chosen.batches(1, rng(1))]
    assert sorted(shuffled) == [2, 4, 6] and shuffled != [2, 4, 6]


def test_learning_the_best_raises_the_reward():
    model = tiny()

    def mean_reward():
        return liking(rollout(model, PROMPTS * 20, generator=rng(9), **SETTINGS)).mean().item()

    before = mean_reward()
    for round in range(3):
        best = rejection_sample(model, PROMPTS * 4, liking, generator=rng(round), **SETTINGS)
        train(
            model, itertools.cycle(best.batches(6)), steps=15, lr=1e-2, weight_decay=0.0,
            progress=False,
        )  # fmt: skip
    assert mean_reward() > 2 * before + 0.5


@pytest.mark.parametrize("keep", [0, 9])
def test_refuses_to_keep_none_or_more_than_there_are(keep):
    with pytest.raises(ValueError, match=f"keep={keep}.*1 to 8"):
        rejection_sample(tiny(), PROMPTS, liking, keep=keep, **SETTINGS)


@pytest.mark.parametrize(
    "reward", [lambda found: torch.ones(3), lambda found: torch.ones(24, dtype=torch.int64)]
)
def test_refuses_rewards_that_are_not_one_float_a_response(reward):
    with pytest.raises(ValueError, match=r"expected floats \(24,\)"):
        rejection_sample(tiny(), PROMPTS, reward, **SETTINGS)


def test_refuses_batches_of_nothing():
    with pytest.raises(ValueError, match="0 responses kept"):
        next(Selection([], [], torch.zeros(0)).batches(4))
    with pytest.raises(ValueError, match="batch_size=0"):
        next(Selection([[2]], [[1]], torch.zeros(1)).batches(0))

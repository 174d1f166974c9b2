"""Comparisons: the annotator's choice is kept, and everything belongs to its prompt."""

import itertools

import pytest
import torch
from helpers import rng

from minillm.align.annotate import Comparisons, annotate
from minillm.align.preferences import reward_model_loss
from minillm.align.reward import ScalarModel, bradley_terry_loss
from minillm.data.packing import IGNORE
from minillm.infer.rollout import response_batch
from minillm.model.config import llama_config
from minillm.model.transformer import Transformer
from minillm.train.loop import train

END, LIKED = 1, 5
PROMPTS = [[2, 3], [4], [6, 7, 8], [9, 2]] * 10


def tiny(seed=0):
    config = llama_config(12, d_model=16, n_layers=1, n_heads=2, max_length=20)
    return Transformer(config, rng(seed))


def liked(found):
    return torch.tensor([float(row.count(LIKED)) for row in found.responses])


def compare(seed=0, prompts=PROMPTS, **settings):
    sizes = {"max_new_tokens": 6, "stop_tokens": [END]}
    return annotate(tiny(), prompts, liked, generator=rng(seed), **sizes | settings)


def count(responses):
    return [row.count(LIKED) for row in responses]


def test_a_sure_annotator_always_chooses_the_better():
    found = compare(noise=0.0, flipped=0.0)
    better, worse = count(found.chosen), count(found.rejected)
    assert len(found) == 40 and found.prompts == PROMPTS
    assert all(b >= w for b, w in zip(better, worse, strict=True)) and sum(better) > sum(worse)
    assert any(row[-1] == END for row in found.chosen)  # the end token is part of a response


def test_careless_annotators_choose_the_worse_as_well():
    """The same samples, half of the labels turned round."""
    sure, careless = compare(noise=0.0, flipped=0.0), compare(noise=0.0, flipped=0.5)
    turned = sum(a != b for a, b in zip(sure.chosen, careless.chosen, strict=True))
    assert 8 < turned < 32
    for i in range(40):
        pair = [sure.chosen[i], sure.rejected[i]]
        assert sorted([careless.chosen[i], careless.rejected[i]]) == sorted(pair)


def test_batches_hold_every_pair_once_with_its_prompt():
    comparisons = Comparisons([[2], [3], [4]], [[5, 1], [6, 1], [7, 1]], [[8, 1], [9, 1], [10, 1]])
    seen = []
    for pairs in comparisons.batches(2, rng()):
        better, worse = pairs.batch.tokens.chunk(2)
        assert (better[:, 0] == worse[:, 0]).all()
        seen += [(*a, *b[1:]) for a, b in zip(better.tolist(), worse.tolist(), strict=True)]
    assert sorted(seen) == [(2, 5, 1, 8, 1), (3, 6, 1, 9, 1), (4, 7, 1, 10, 1)]
    assert next(comparisons.batches(3)).batch.tokens[:, 0].tolist() == [2, 3, 4] * 2
    assert next(comparisons.batches(3, reference=tiny())).reference.shape == (6, 3)
    assert comparisons.select([2, 0]).chosen == [[7, 1], [5, 1]]
    with pytest.raises(ValueError, match="batch_size=0"):
        next(comparisons.batches(0))


def test_the_sum_over_a_response_is_that_of_its_tokens_alone():
    """Neither the prompt nor the padding is counted; the end token is."""
    model, generator = ScalarModel(tiny()), rng(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    batch = response_batch([[2, 3], [4], [6, 7, 8]], [[5, 1], [7, 9, 8, 1], [5]])
    alone = [model(torch.tensor([row]))[0] for row in ([2, 3, 5, 1], [4, 7, 9, 8, 1], [6, 7, 8, 5])]
    expected = torch.stack([alone[0][2:].sum(), alone[1][1:].sum(), alone[2][3:].sum()])
    torch.testing.assert_close(model.over_response(batch), expected)
    batch.targets.fill_(IGNORE)
    with pytest.raises(ValueError, match="row 0 has no action"):
        model.over_response(batch)


def test_a_reward_model_learns_the_taste_behind_the_choices():
    comparisons, others = (compare(seed, PROMPTS * 10, noise=0.0, flipped=0.0) for seed in (0, 1))
    model, pairs = ScalarModel(tiny(1)), next(comparisons.batches(400))
    train(
        model, itertools.repeat(pairs), steps=40, lr=1e-2, loss_fn=reward_model_loss,
        progress=False,
    )  # fmt: skip
    better, worse = model.over_response(next(others.batches(400)).batch).chunk(2)
    differ = torch.tensor(count(others.chosen)) > torch.tensor(count(others.rejected))
    assert (better > worse)[differ].float().mean() > 0.8
    better, worse = model.over_response(pairs.batch).chunk(2)
    total, n = reward_model_loss(model, pairs)
    torch.testing.assert_close(total, 400 * bradley_terry_loss(better, worse))
    assert n == 400


def test_a_truth_that_is_not_one_number_a_response_is_refused():
    with pytest.raises(ValueError, match=r"expected floats \(4,\), one a response"):
        annotate(
            tiny(), PROMPTS[:2], lambda found: liked(found)[:, None], generator=rng(),
            max_new_tokens=6, stop_tokens=[END],
        )  # fmt: skip

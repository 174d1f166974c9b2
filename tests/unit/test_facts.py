"""A world of facts: how often each is told, what is right, and the floor nobody can beat."""

import pytest
import torch

from minillm.data.facts import World
from minillm.data.packing import IGNORE


def truth(world: World) -> torch.Tensor:
    """(n_facts, n_words) the probabilities that the world's own rules give."""
    table = torch.full((world.n_facts, world.n_words), world.noise / world.n_words)
    table[torch.arange(world.n_facts), world.objects] += 1 - world.noise
    return table


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.7])
def test_the_truth_scores_the_entropy_and_nothing_scores_less(noise):
    world = World(n_words=7, exponent=1.3, noise=noise, seed=3)
    assert world.expected_loss(truth(world).log().clamp(min=-1e4)) == pytest.approx(world.entropy)
    wrong = torch.randn(49, 7, generator=torch.Generator().manual_seed(0))
    assert world.expected_loss(truth(world).clamp(min=1e-9).log() + 0.1 * wrong) > world.entropy


def test_the_expected_loss_is_what_many_samples_cost():
    world = World(n_words=9, exponent=1.1, noise=0.2, seed=1)
    logits = torch.randn(81, 9, generator=torch.Generator().manual_seed(1))
    batch = world.sample(200_000, torch.Generator().manual_seed(2))
    rows = logits[batch.tokens @ torch.tensor([9, 1])]
    sampled = torch.nn.functional.cross_entropy(rows, batch.targets[:, 1])
    assert float(sampled) == pytest.approx(world.expected_loss(logits), abs=0.02)


def test_facts_are_told_as_often_as_zipf_says_and_as_right_as_the_noise_allows():
    world = World(n_words=5, exponent=1.5, noise=0.4, seed=2)
    batch = world.sample(200_000, torch.Generator().manual_seed(0))
    pairs = batch.tokens @ torch.tensor([5, 1])
    told = torch.bincount(pairs, minlength=25)[world.pairs] / len(pairs)
    assert torch.allclose(told.double(), world.probabilities, atol=0.005)
    assert float(told[0] / told[3]) == pytest.approx(4**1.5, rel=0.05)
    right = (world.objects[pairs] == batch.targets[:, 1]).double().mean()
    assert float(right) == pytest.approx(0.6 + 0.4 / 5, abs=0.005)
    assert (batch.targets[:, 0] == IGNORE).all()


def test_the_seed_decides_the_world_and_the_generator_what_is_told():
    one, other = World(seed=0), World(seed=1)
    assert torch.equal(one.objects, World(seed=0).objects)
    assert not torch.equal(one.objects, other.objects)
    assert sorted(one.pairs.tolist()) == list(range(one.n_facts))
    draws = [one.sample(50, torch.Generator().manual_seed(s)).tokens for s in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(
    "wrong", [{"n_words": 1}, {"exponent": 0.0}, {"noise": 1.0}, {"noise": -0.1}]
)
def test_impossible_worlds_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
        World(**wrong)

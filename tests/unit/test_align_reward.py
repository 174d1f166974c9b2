"""Reward models: where they read, what they learn, and annotators whose taste is known."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import randomised, rng

from minillm.align.reward import (
    ScalarModel,
    bradley_terry_loss,
    end_positions,
    preference_accuracy,
    simulated_preferences,
)
from minillm.data.packing import IGNORE, Batch
from minillm.infer.rollout import response_batch
from minillm.model.config import llama_config
from minillm.model.transformer import Transformer


@pytest.fixture
def model():
    backbone = Transformer(llama_config(19, d_model=24, n_layers=2, n_heads=4, max_length=20))
    return randomised(ScalarModel(backbone))


TEXTS = [[3, 1, 4], [9]], [[2, 1], [5, 3, 5, 8, 1]]


def test_a_reward_is_read_where_the_whole_response_has_been_seen(model):
    """As from each text alone, its end token the last; and no other position gives the same."""
    batch = response_batch(*TEXTS)
    assert end_positions(batch).tolist() == [4, 5]
    found = model.at_end(batch)
    for row, (prompt, response) in enumerate(zip(*TEXTS, strict=True)):
        alone = model(torch.tensor([[*prompt, *response]]))
        assert alone.shape == (1, len(prompt) + len(response))
        torch.testing.assert_close(found[row], alone[0, -1])
        every = model(batch.tokens)[row]
        others = torch.arange(6) != end_positions(batch)[row]
        assert ((every[others] - found[row]).abs() > 1e-3).all()


def test_a_new_model_gives_everything_zero_and_draws_nothing():
    backbone = Transformer(llama_config(19, d_model=24, n_layers=1, n_heads=4, max_length=20))
    state = torch.get_rng_state()
    model = ScalarModel(backbone)
    assert torch.equal(torch.get_rng_state(), state)
    assert (model(torch.tensor([[1, 2, 3]])) == 0).all()
    assert model.backbone is backbone


def test_bradley_terry_by_hand_and_against_torch():
    """Rewards log 3 and 0: preferred with probability ¾; and a margin of log 3 makes it ½."""
    chosen, rejected = torch.tensor([3.0]).log(), torch.zeros(1)
    assert bradley_terry_loss(chosen, rejected).item() == pytest.approx(-math.log(0.75))
    assert bradley_terry_loss(chosen, rejected, chosen).item() == pytest.approx(math.log(2))
    a, b, margin = torch.randn(3, 7, generator=rng()).requires_grad_()
    loss = bradley_terry_loss(a, b, margin.detach())
    expected = F.binary_cross_entropy_with_logits(a - b - margin.detach(), torch.ones(7))
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(x, (a, b), retain_graph=True) for x in (loss, expected)]
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(
        bradley_terry_loss(a + 9, b + 9), bradley_terry_loss(a, b), atol=1e-5, rtol=0
    )


def test_accuracy_counts_ties_half():
    chosen, rejected = torch.tensor([1.0, 2.0, 0.0, 5.0]), torch.tensor([0.0, 3.0, 0.0, 1.0])
    assert preference_accuracy(chosen, rejected) == 0.625


def test_a_reward_model_learns_to_tell_what_people_like():
    """Responses with a 5 are better; after 60 steps so they are on texts it has not seen."""
    generator = rng()
    model = ScalarModel(
        Transformer(llama_config(19, d_model=16, n_layers=1, n_heads=2, max_length=20), rng())
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def pairs(n):
        responses = torch.randint(6, 19, (2 * n, 4), generator=generator)
        places = torch.randint(4, (n,), generator=generator)
        responses[torch.arange(n), places] = 5
        return response_batch([[2, 3]] * (2 * n), [[*row, 1] for row in responses.tolist()])

    for _ in range(60):
        optimizer.zero_grad()
        bradley_terry_loss(*model.at_end(pairs(16)).chunk(2)).backward()
        optimizer.step()
    assert preference_accuracy(*model.at_end(pairs(200)).chunk(2)) > 0.95


def test_annotators_follow_bradley_terry():
    """P(a) = σ(1.5 / temperature), and of the labels a share is turned round."""
    a, b = torch.full((20000,), 2.0), torch.full((20000,), 0.5)

    def share(**settings):
        return simulated_preferences(a, b, rng(), **settings).float().mean().item()

    sigma = 1 / (1 + math.exp(-1.5 / 0.7))
    assert share(temperature=0.7) == pytest.approx(sigma, abs=0.012)
    noisy = 0.8 * sigma + 0.2 * (1 - sigma)
    assert share(temperature=0.7, flipped=0.2) == pytest.approx(noisy, abs=0.012)
    assert share(temperature=0) == 1
    assert share(temperature=0, flipped=0.1) == pytest.approx(0.9, abs=0.012)
    tie = simulated_preferences(a, a, rng(), temperature=0).float().mean().item()
    assert tie == pytest.approx(0.5, abs=0.015)
    assert torch.equal(simulated_preferences(a, b, rng(4)), simulated_preferences(a, b, rng(4)))


def test_bad_input_is_refused(model):
    with pytest.raises(ValueError, match=r"chosen \(3,\), rejected \(3, 1\)"):
        bradley_terry_loss(torch.zeros(3), torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"flipped=0\.7"):
        simulated_preferences(torch.zeros(1), torch.zeros(1), rng(), flipped=0.7)
    with pytest.raises(ValueError, match="temperature=-1"):
        simulated_preferences(torch.zeros(1), torch.zeros(1), rng(), temperature=-1)
    inputs_only = Batch(torch.tensor([[3, 4]]), torch.tensor([[IGNORE, 5]]))
    with pytest.raises(ValueError, match="row 0 ends at position 2 and the batch has 2"):
        model.at_end(inputs_only)
    with pytest.raises(ValueError, match="row 0 has no action"):
        model.at_end(Batch(torch.tensor([[3, 4]]), torch.full((1, 2), IGNORE)))

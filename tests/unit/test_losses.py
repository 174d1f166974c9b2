"""Losses against torch, and on the inputs where naive versions give NaN."""

import math

import pytest
import torch
import torch.nn.functional as F

from minillm.train.losses import IGNORE, next_token_loss, perplexity


def random_case(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(3, 7, 11, generator=generator)
    targets = torch.randint(11, (3, 7), generator=generator)
    targets[0, :4] = IGNORE  # ragged rows
    targets[2, 1:] = IGNORE
    return logits, targets


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_equals_torch_with_gradient(reduction):
    logits, targets = random_case()
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = next_token_loss(ours, targets, reduction=reduction)
    expected = F.cross_entropy(
        theirs.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction=reduction
    )
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_by_hand():
    """Logits log(1), log(2), log(5) are probabilities 1/8, 2/8, 5/8: the loss of 2 is log(8/5)."""
    logits = torch.tensor([[[1.0, 2.0, 5.0]]]).log()
    torch.testing.assert_close(
        next_token_loss(logits, torch.tensor([[2]])), torch.tensor(math.log(8 / 5))
    )


def test_nothing_to_score_is_zero_and_so_is_its_gradient():
    logits, targets = random_case()
    logits.requires_grad_()
    loss = next_token_loss(logits, torch.full_like(targets, IGNORE))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_refuses():
    logits, targets = random_case()
    with pytest.raises(ValueError, match=r"\(3, 7, 11\) and targets \(3, 6\) do not fit"):
        next_token_loss(logits, targets[:, :6])
    with pytest.raises(ValueError, match="expected 'mean' or 'sum'"):
        next_token_loss(logits, targets, reduction="none")
    with pytest.raises(ValueError, match=r"target 11 is outside the vocabulary 0\.\.10"):
        next_token_loss(logits, targets.masked_fill(targets == 3, 11))
    with pytest.raises(ValueError, match="target -1 is outside"):
        next_token_loss(logits, targets.masked_fill(targets == 3, -1))


def test_perplexity_of_a_uniform_guess_is_the_number_of_choices():
    assert perplexity(math.log(50)) == pytest.approx(50)
    assert perplexity(torch.tensor(0.0)) == 1.0
    with pytest.raises(ValueError, match="cannot be negative"):
        perplexity(-0.1)

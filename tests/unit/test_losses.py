"""Losses against torch, and on the inputs where naive versions give NaN."""

import math

import pytest
import torch
import torch.nn.functional as F

from minillm.train.losses import IGNORE, chunked_loss, next_token_loss, perplexity


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


@pytest.mark.parametrize("n_rows", [1, 4, 100])
@pytest.mark.parametrize("learns", [True, False])
def test_a_loss_in_chunks_is_the_loss_with_its_gradients(n_rows, learns):
    generator = torch.Generator().manual_seed(0)
    _, targets = random_case()
    runs = []
    for chunked in (True, False):
        layer = torch.nn.Linear(5, 11)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(11, 5, generator=generator.manual_seed(1)))
            layer.bias.copy_(torch.randn(11, generator=generator))
        layer.requires_grad_(learns)
        hidden = torch.randn(21, 5, generator=generator).requires_grad_()
        if chunked:
            learned = [p for p in layer.parameters() if p.requires_grad]
            loss = chunked_loss(layer, hidden, targets.flatten(), learned, n_rows)
        else:
            loss = next_token_loss(layer(hidden), targets.flatten(), reduction="sum")
        (0.3 * loss).backward()
        runs.append((loss.detach(), hidden.grad, layer.weight.grad, layer.bias.grad))
    for found, expected in zip(*runs, strict=True):
        assert (found is None) == (expected is None)
        if found is not None:
            torch.testing.assert_close(found, expected)


def test_a_loss_in_chunks_without_gradients_and_with_nothing_to_score():
    hidden, targets = torch.randn(4, 11), torch.full((4,), IGNORE)
    with torch.no_grad():
        assert chunked_loss(torch.nn.Identity(), hidden, targets).item() == 0.0
    hidden.requires_grad_()
    chunked_loss(torch.nn.Identity(), hidden, targets, n_rows=3).backward()
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))


def test_a_loss_in_chunks_refuses():
    with pytest.raises(ValueError, match="n_rows=0: expected at least 1"):
        chunked_loss(torch.nn.Identity(), torch.ones(2, 3), torch.ones(2).long(), n_rows=0)
    with pytest.raises(ValueError, match=r"expected \(N, C\) and \(N,\)"):
        chunked_loss(torch.nn.Identity(), torch.ones(2, 3), torch.ones(3).long())

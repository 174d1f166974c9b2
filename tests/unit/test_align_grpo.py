"""GRPO's loss written out as loops, and what each way of averaging does to long answers."""

import math

import pytest
import torch
from helpers import rng

from minillm.align.advantages import group_advantages
from minillm.align.grpo import average, grpo_loss


@pytest.fixture
def case():
    log_probs, old, ref = -2 * torch.rand(3, 4, 6, generator=rng())
    advantages = group_advantages(torch.randn(2, 2, generator=rng(1))).flatten()
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[0, :2] = False
    mask[1, 4:] = False
    mask[2, 1:] = False
    return log_probs.requires_grad_(), old, ref, advantages, mask


def test_averages_by_hand():
    """Rows 1 + 2 + 3 and 10: means 2 and 10, so 6 by sequence; 16/4 by token; 16/(2·8) constant."""
    x = torch.tensor([[1.0, 2.0, 3.0], [10.0, math.nan, math.nan]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()
    assert average(x, mask, "sequence").item() == 6
    assert average(x, mask, "token").item() == 4
    assert average(x, mask, "constant", length=8).item() == 1


@pytest.mark.parametrize("by, length", [("sequence", None), ("token", None), ("constant", 7)])
@pytest.mark.parametrize("clip_high", [None, 0.5])
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_the_loss_written_out(case, by, length, clip_high, beta):
    log_probs, old, ref, advantages, mask = case
    high = 1 + (0.2 if clip_high is None else clip_high)
    total, rows, n = 0.0, [], 0
    for row in range(4):
        losses = []
        for t in range(6):
            if mask[row, t]:
                ratio = (log_probs[row, t] - old[row, t]).exp()
                clipped = ratio.clamp(0.8, high)
                delta = ref[row, t] - log_probs[row, t]
                gain = torch.minimum(ratio * advantages[row], clipped * advantages[row])
                losses.append(-gain + beta * (delta.exp() - delta - 1))
        rows.append(sum(losses) / len(losses))
        total, n = total + sum(losses), n + len(losses)
    expected = {"sequence": sum(rows) / 4, "token": total / n, "constant": total / (4 * 7)}[by]
    settings = {"clip_high": clip_high, "by": by, "length": length, "beta": beta}
    found = grpo_loss(log_probs, old, advantages, mask, ref_log_probs=ref, **settings)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(loss, log_probs)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_what_a_token_of_a_long_answer_weighs():
    """Two wrong answers of 2 and 8 tokens, at ratio 1: the gradient of a token is 1 by its weight.

    By sequence ½·½ and ½·⅛: rambling is four times cheaper a token. By token 1/10 each. By the
    constant 8, 1/16 each, and the same if the other answer were not there.
    """
    mask = torch.zeros(2, 8, dtype=torch.bool)
    mask[0, :2], mask[1] = True, True

    def weights(mask, by, length=None):
        log_probs = torch.zeros(len(mask), 8, requires_grad=True)
        advantages = -torch.ones(len(mask))
        loss = grpo_loss(
            log_probs, torch.zeros(len(mask), 8), advantages, mask, by=by, length=length
        )
        gradient = torch.autograd.grad(loss, log_probs)[0]
        assert (gradient[~mask] == 0).all()
        return [gradient[row, 0].item() * len(mask) for row in range(len(mask))]

    assert weights(mask, "sequence") == [1 / 2, 1 / 8]
    assert weights(mask, "token") == pytest.approx([1 / 5, 1 / 5])
    assert weights(mask, "constant", 8) == [1 / 8, 1 / 8]
    assert weights(mask[:1], "constant", 8) == [1 / 8]


def test_groups_without_a_difference_teach_nothing_but_the_kl(case):
    log_probs, old, ref, _, mask = case
    advantages = group_advantages(torch.ones(2, 2)).flatten()
    loss = grpo_loss(log_probs, old, advantages, mask)
    assert (torch.autograd.grad(loss, log_probs)[0] == 0).all()
    loss = grpo_loss(log_probs, old, advantages, mask, ref_log_probs=ref, beta=0.1)
    gradient = torch.autograd.grad(loss, log_probs)[0]
    assert ((gradient != 0) == mask).all()


@pytest.mark.parametrize("by, length", [("sequence", None), ("token", None), ("constant", 7)])
def test_one_wrong_position_of_the_mask_changes_the_loss(case, by, length):
    log_probs, old, _, advantages, mask = case
    right = grpo_loss(log_probs, old, advantages, mask, by=by, length=length)
    for row in range(4):
        for t in range(6):
            wrong = mask.clone()
            wrong[row, t] ^= True
            found = grpo_loss(log_probs, old, advantages, wrong, by=by, length=length)
            assert (found - right).abs() > 1e-6


def test_bad_input_is_refused(case):
    log_probs, old, ref, advantages, mask = case
    with pytest.raises(ValueError, match="by='row'"):
        average(old, mask, "row")
    with pytest.raises(ValueError, match="by='constant', length=None"):
        average(old, mask, "constant")
    with pytest.raises(ValueError, match="by='token', length=3"):
        average(old, mask, "token", 3)
    with pytest.raises(ValueError, match=r"advantages \(2, 2\): expected \(4,\)"):
        grpo_loss(log_probs, old, advantages.view(2, 2), mask)
    with pytest.raises(ValueError, match=r"beta=0\.1: expected at least 0, and ref_log_probs"):
        grpo_loss(log_probs, old, advantages, mask, beta=0.1)
    with pytest.raises(ValueError, match=r"tensor of shape \(4, 1\)"):
        grpo_loss(log_probs, old, advantages, mask, ref_log_probs=ref[:, :1], beta=0.1)
    with pytest.raises(ValueError, match="expected bool"):
        grpo_loss(log_probs, old, advantages, mask.long())

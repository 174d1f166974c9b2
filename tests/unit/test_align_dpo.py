"""Preference losses on numbers worked out by hand, and against torch's own."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import rng

from minillm.align.dpo import (
    dpo_loss,
    ipo_loss,
    kto_loss,
    kto_reference_point,
    log_odds,
    log_ratio_margin,
    orpo_loss,
    simpo_loss,
)


@pytest.fixture
def four():
    """Summed log-probs of 5 pairs: policy chosen and rejected (with gradients), and reference."""
    x = -10 * torch.rand(4, 5, generator=rng())
    return x[0].requires_grad_(), x[1].requires_grad_(), x[2], x[3]


def test_dpo_by_hand():
    """β = ½: (−4 + 6) − (−7 + 5) = 4, times ½ is 2: −log σ(2) = log(1 + e^−2)."""
    numbers = [torch.tensor([x]) for x in (-4.0, -7.0, -6.0, -5.0)]
    assert log_ratio_margin(*numbers).tolist() == [4]
    assert dpo_loss(*numbers, beta=0.5).item() == pytest.approx(math.log1p(math.exp(-2)))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_dpo_equals_a_logistic_regression(four, smoothing):
    """On the margin, with label 1 − ε; so do its gradients."""
    chosen, rejected, ref_chosen, ref_rejected = four
    loss = dpo_loss(*four, beta=0.3, label_smoothing=smoothing)
    logits = 0.3 * ((chosen - rejected) - (ref_chosen - ref_rejected))
    labels = torch.full((5,), 1 - smoothing)
    expected = F.binary_cross_entropy_with_logits(logits, labels)
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(x, four[:2]) for x in (loss, expected)]
    torch.testing.assert_close(*gradients)


def test_dpo_of_the_reference_itself_is_log_two(four):
    chosen, rejected, _, _ = four
    loss = dpo_loss(chosen, rejected, chosen, rejected, beta=0.7)
    assert loss.item() == pytest.approx(math.log(2))
    # And pushes with half its strength: the weight of a pair is σ(−margin).
    gradient = torch.autograd.grad(loss, chosen)[0]
    torch.testing.assert_close(gradient, torch.full((5,), -0.7 / 2 / 5))


def test_dpo_is_blind_to_what_a_prompt_adds_to_both(four):
    chosen, rejected, ref_chosen, ref_rejected = four
    shift = torch.randn(5, generator=rng(1))
    for loss in (dpo_loss, ipo_loss):
        shifted = loss(chosen, rejected, ref_chosen + shift, ref_rejected + shift)
        torch.testing.assert_close(shifted, loss(*four))


def test_dpo_survives_huge_margins():
    far = torch.tensor([5000.0], requires_grad=True)
    zero = torch.zeros(1)
    loss = dpo_loss(-far, far, zero, zero, beta=1.0)
    loss.backward()
    assert loss.item() == 10000
    assert far.grad.item() == 2


def test_ipo_by_hand_and_against_torch(four):
    """The margin of 4 with τ = ¼ misses its target 1/(2τ) = 2 by 2: loss 4."""
    numbers = [torch.tensor([x]) for x in (-4.0, -7.0, -6.0, -5.0)]
    assert ipo_loss(*numbers, tau=0.25).item() == 4
    expected = F.mse_loss(log_ratio_margin(*four), torch.full((5,), 1 / 0.6))
    loss = ipo_loss(*four, tau=0.3)
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(x, four[:2]) for x in (loss, expected)]
    torch.testing.assert_close(*gradients)


def test_kto_by_hand():
    """β = ½, z = 1; log-ratios 3 (good) and 5 (bad), weights 2 and 3.

    Good: 2 (1 − σ(½(3 − 1))) = 2 σ(−1); bad: 3 (1 − σ(½(1 − 5))) = 3 σ(2). Half the sum.
    """
    policy, ref = torch.tensor([-1.0, -2.0], requires_grad=True), torch.tensor([-4.0, -7.0])
    desirable = torch.tensor([True, False])
    loss = kto_loss(policy, ref, desirable, 1.0, beta=0.5, weights=(2.0, 3.0))
    sigma = [1 / (1 + math.exp(1)), 1 / (1 + math.exp(-2))]
    assert loss.item() == pytest.approx((2 * sigma[0] + 3 * sigma[1]) / 2)
    loss.backward()  # σ'(x) = σ(1 − σ); the good one goes up, the bad one down
    slopes = [-2 * 0.5 * sigma[0] * (1 - sigma[0]) / 2, 3 * 0.5 * sigma[1] * (1 - sigma[1]) / 2]
    assert policy.grad.tolist() == pytest.approx(slopes)


def test_ktos_reference_point_is_no_negative_kl_and_takes_no_gradient():
    policy = torch.tensor([1.0, 2.0], requires_grad=True)
    z = kto_reference_point(policy, torch.zeros(2))
    assert (z.item(), z.requires_grad) == (1.5, False)
    assert kto_reference_point(-policy, torch.zeros(2)).item() == 0
    point = torch.tensor(0.5, requires_grad=True)
    loss = kto_loss(policy, torch.zeros(2), torch.tensor([True, False]), point)
    assert torch.autograd.grad(loss, point, allow_unused=True)[0] is None


def test_simpo_by_hand():
    """β = 2, γ = ½: 2 (−0.5 + 1.5) − ½ = 1.5; γ is not multiplied by β."""
    loss = simpo_loss(torch.tensor([-0.5]), torch.tensor([-1.5]))
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1.5)))


def test_orpo_by_hand():
    """p = ½ has odds 1, p = ¼ odds ⅓: log 3 apart, σ(log 3) = ¾. λ = 0.2."""
    chosen = torch.tensor([0.5]).log().requires_grad_()
    rejected = torch.tensor([0.25]).log()
    assert log_odds(rejected).item() == pytest.approx(-math.log(3))
    loss = orpo_loss(chosen, rejected, weight=0.2)
    assert loss.item() == pytest.approx(math.log(2) - 0.2 * math.log(0.75))
    # d log-odds / d log p = 1/(1 − p) = 2, and σ(−log 3) = ¼.
    loss.backward()
    assert chosen.grad.item() == pytest.approx(-1 - 0.2 * 0.25 * 2)


def test_orpo_survives_certainty():
    chosen = torch.zeros(1, requires_grad=True)
    loss = orpo_loss(chosen, torch.tensor([-400.0]))
    loss.backward()
    assert math.isfinite(loss.item())
    assert math.isfinite(chosen.grad.item())


def test_every_loss_prefers_the_chosen_response(four):
    """One step down the gradient raises the chosen and lowers the rejected response."""
    chosen, rejected, ref_chosen, ref_rejected = four
    same = (chosen.detach(), rejected.detach())
    losses = {
        "dpo": dpo_loss(chosen, rejected, *same),
        "ipo": ipo_loss(chosen, rejected, *same),
        "simpo": simpo_loss(chosen, rejected),
        "orpo": orpo_loss(chosen, rejected),
        "kto": kto_loss(chosen, ref_chosen, torch.ones(5).bool(), 0.0)
        + kto_loss(rejected, ref_rejected, torch.zeros(5).bool(), 0.0),
    }
    for name, loss in losses.items():
        up, down = torch.autograd.grad(loss, (chosen, rejected))
        assert (up < 0).all(), name
        assert (down > 0).all(), name


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: dpo_loss(x, x, x, x[:2]), r"shapes \[\(5,\), .* expected \(B,\) each; sum or"),
        (lambda x: dpo_loss(x, x, x, x, beta=0), "beta=0: expected a number above 0"),
        (lambda x: dpo_loss(x, x, x, x, label_smoothing=0.6), r"label_smoothing=0\.6"),
        (lambda x: ipo_loss(x, x, x, x[None]), r"\(1, 5\)"),
        (lambda x: ipo_loss(x, x, x, x, tau=-1), "-1: expected a number above 0"),
        (lambda x: kto_loss(x, x, x, 0.0), r"desirable is torch\.float32: expected bool"),
        (lambda x: kto_reference_point(x[None], x[None]), r"expected \(B,\) each"),
        (lambda x: simpo_loss(x, x, beta=0), "beta=0"),
        (lambda x: orpo_loss(x + 20, x), "a mean log-probability is above 0"),
        (lambda x: orpo_loss(x, x, weight=-1), "weight=-1"),
    ],
)
def test_bad_input_is_refused(four, call, words):
    with pytest.raises(ValueError, match=words):
        call(four[2])

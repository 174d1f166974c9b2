"""PPO's losses by hand, and the estimators of the KL by adding up over a whole vocabulary."""

import math

import pytest
import torch
from helpers import rng
from torch.distributions import Categorical, kl_divergence

from minillm.align.ppo import (
    clip_fraction,
    clipped_surrogate,
    kl_estimate,
    kl_shaped_rewards,
    last_action,
    policy_loss,
    value_loss,
)


@pytest.fixture
def case():
    log_probs, old = -2 * torch.rand(2, 3, 6, generator=rng())
    advantages = torch.randn(3, 6, generator=rng(1))
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[0, :2] = False
    mask[1, 4:] = False
    return log_probs.requires_grad_(), old, advantages, mask


@pytest.mark.parametrize(
    "ratio, advantage, loss, slope",
    [
        (1.0, 2.0, -2.0, -2.0),  # nothing has moved: the plain policy gradient
        (1.1, 2.0, -2.2, -2.2),  # within the range
        (1.5, 2.0, -2.4, 0.0),  # good, and already 1.2 times as likely: no further
        (0.5, 2.0, -1.0, -1.0),  # good, but has become unlikely: come back
        (0.5, -2.0, 1.6, 0.0),  # bad, and already 0.8 times as likely: no further
        (1.5, -2.0, 3.0, 3.0),  # bad, but has become likely: come back
    ],
)
def test_the_six_cases_of_clipping_by_hand(ratio, advantage, loss, slope):
    """Loss −min(ρA, clip(ρ)A); its slope in log π is −ρA, or 0 where the clipped term is less."""
    log_prob = torch.tensor([[math.log(ratio) - 1.3]], requires_grad=True)
    found = clipped_surrogate(log_prob, torch.tensor([[-1.3]]), torch.tensor([[advantage]]))
    found.sum().backward()
    assert found.item() == pytest.approx(loss, abs=1e-5)
    assert log_prob.grad.item() == pytest.approx(slope, abs=1e-5)


def test_clip_higher_lets_only_good_actions_grow_further():
    """ρ = 1.25, within 1 + 0.28 but beyond 1 + 0.2; the lower bound stays at 0.8."""
    old = torch.full((1, 3), -1.0)
    new = (old + torch.tensor([[1.25, 1.5, 0.75]]).log()).requires_grad_()
    advantages = torch.tensor([[1.0, 1.0, -1.0]])
    found = clipped_surrogate(new, old, advantages, clip_high=0.28)
    found.sum().backward()
    assert found.tolist()[0] == pytest.approx([-1.25, -1.28, 0.8])
    assert new.grad.tolist()[0] == pytest.approx([-1.25, 0.0, 0.0])


def test_at_the_start_it_is_the_policy_gradient(case):
    """ρ = 1 everywhere: the gradient of the mean is −A / n, whatever the clip."""
    log_probs, _, advantages, mask = case
    policy_loss(log_probs, log_probs, advantages, mask, clip=0.0).backward()
    torch.testing.assert_close(log_probs.grad, (-advantages / mask.sum()).where(mask, 0.0))


def test_the_policy_loss_written_out(case):
    log_probs, old, advantages, mask = case
    total, n = 0.0, 0
    for row in range(3):
        for t in range(6):
            if mask[row, t]:
                ratio = math.exp(log_probs[row, t].item() - old[row, t].item())
                a = advantages[row, t].item()
                total -= min(ratio * a, min(max(ratio, 0.7), 1.3) * a)
                n += 1
    assert policy_loss(log_probs, old, advantages, mask, clip=0.3).item() == pytest.approx(
        total / n, abs=1e-6
    )


def test_one_wrong_position_of_the_mask_changes_the_losses(case):
    log_probs, old, advantages, mask = case
    values, returns = advantages, old
    right = policy_loss(log_probs, old, advantages, mask), value_loss(values, old, returns, mask)
    for row in range(3):
        for t in range(6):
            wrong = mask.clone()
            wrong[row, t] ^= True
            assert (policy_loss(log_probs, old, advantages, wrong) - right[0]).abs() > 1e-5
            assert (value_loss(values, old, returns, wrong) - right[1]).abs() > 1e-5


def test_only_the_policy_gets_a_gradient(case):
    log_probs, old, advantages, mask = case
    old.requires_grad_()
    advantages.requires_grad_()
    loss = policy_loss(log_probs, old, advantages, mask)
    loss = loss + kl_estimate(log_probs, old, "k3").mean()
    assert torch.autograd.grad(loss, (old, advantages), allow_unused=True) == (None, None)


def test_the_value_loss_by_hand():
    """Half the larger of the squared errors, clip ½; returns 1, old values 0.

    V = 0.4 is within reach: 0.36. V = 0.9 counts as 0.5: 0.25 instead of 0.01. V = −1 counts as
    −½, but its own error 4 is larger. Mean of the three, halved.
    """
    values = torch.tensor([[0.4, 0.9, -1.0, 7.0]], requires_grad=True)
    old, returns = torch.zeros(1, 4), torch.ones(1, 4)
    mask = torch.tensor([[True, True, True, False]])
    loss = value_loss(values, old, returns, mask, clip=0.5)
    assert loss.item() == pytest.approx((0.36 + 0.25 + 4.0) / 6)
    loss.backward()
    assert values.grad.tolist()[0] == pytest.approx([-0.6 / 3, 0.0, -2.0 / 3, 0.0])
    plain = value_loss(values, old, returns, mask, clip=None)
    assert plain.item() == pytest.approx((0.36 + 0.01 + 4.0) / 6)
    assert torch.autograd.grad(plain, values)[0].tolist()[0] == pytest.approx(
        [-0.2, -0.1 / 3, -2 / 3, 0], abs=1e-6
    )


@pytest.fixture
def policies():
    logits = torch.randn(2, 9, generator=rng(), dtype=torch.float64)
    return logits[0].requires_grad_(), logits[1]


def test_the_estimators_mean_values_over_the_vocabulary(policies):
    """Σ_v π(v) k(v): k1 and k3 are the KL exactly, k2 is not; k2 and k3 are never negative."""
    logits, ref = policies
    exact = kl_divergence(Categorical(logits=logits), Categorical(logits=ref))
    log_probs, ref_log_probs = logits.log_softmax(0), ref.log_softmax(0)
    mean = {
        kind: (log_probs.exp() * kl_estimate(log_probs, ref_log_probs, kind)).sum()
        for kind in ("k1", "k2", "k3")
    }
    torch.testing.assert_close(mean["k1"], exact)
    torch.testing.assert_close(mean["k3"], exact)
    assert (mean["k2"] - exact).abs() > 0.01
    assert (kl_estimate(log_probs, ref_log_probs, "k1") < 0).any()
    assert (kl_estimate(log_probs, ref_log_probs, "k2") >= 0).all()
    assert (kl_estimate(log_probs, ref_log_probs, "k3") >= 0).all()


def test_the_estimators_mean_gradients_over_the_vocabulary(policies):
    """As losses on samples: k1 pushes nowhere, k2 like the KL, k3 like the KL from ref to π."""
    logits, ref = policies
    p, q = Categorical(logits=logits), Categorical(logits=ref)
    log_probs, ref_log_probs = logits.log_softmax(0), ref.log_softmax(0)

    def gradient(loss):
        return torch.autograd.grad(loss, logits, retain_graph=True)[0]

    sampled = log_probs.detach().exp()  # drawn from the policy: their number has no gradient
    found = {
        kind: gradient((sampled * kl_estimate(log_probs, ref_log_probs, kind)).sum())
        for kind in ("k1", "k2", "k3")
    }
    torch.testing.assert_close(found["k1"], torch.zeros_like(logits))
    torch.testing.assert_close(found["k2"], gradient(kl_divergence(p, q)))
    torch.testing.assert_close(found["k3"], gradient(kl_divergence(q, p)))


def test_kl_by_hand():
    """π = ½, reference ¼: Δ = −ln 2; k1 = ln 2, k2 = (ln 2)²/2, k3 = ½ + ln 2 − 1."""
    new, ref = torch.tensor(0.5).log(), torch.tensor(0.25).log()
    ln2 = math.log(2)
    found = [kl_estimate(new, ref, kind).item() for kind in ("k1", "k2", "k3")]
    assert found == pytest.approx([ln2, ln2**2 / 2, ln2 - 0.5])
    assert [kl_estimate(new, new, kind).item() for kind in ("k1", "k2", "k3")] == [0, 0, 0]


def test_shaped_rewards_add_up_to_the_score_minus_the_kl(case):
    log_probs, ref, _, mask = case
    scores = torch.tensor([2.0, -1.0, 0.5])
    found = kl_shaped_rewards(scores, log_probs, ref, mask, beta=0.3)
    kl = (log_probs - ref).where(mask, 0.0).sum(1)
    torch.testing.assert_close(found.sum(1), scores - 0.3 * kl)
    assert (found[~mask] == 0).all()
    assert not found.requires_grad
    # Without a price all of it arrives with the last action, even if that is not the last column.
    free = kl_shaped_rewards(scores, log_probs, ref, mask, beta=0.0)
    expected = torch.zeros(3, 6)
    expected[0, 5], expected[1, 3], expected[2, 5] = scores
    assert torch.equal(free, expected)
    assert last_action(mask).tolist() == [5, 3, 5]


def test_the_clip_fraction_counts_only_actions():
    """Ratios 1, 1.19, 1.21, 0.79 and one that is no action: two of four are outside."""
    new = torch.tensor([[1.0, 1.19, 1.21, 0.79, 9.0]]).log()
    mask = torch.tensor([[True, True, True, True, False]])
    assert clip_fraction(new, torch.zeros(1, 5), mask) == 0.5
    assert clip_fraction(new, torch.zeros(1, 5), mask, clip_high=0.28) == 0.25


def test_bad_input_is_refused(case):
    log_probs, old, advantages, mask = case
    with pytest.raises(ValueError, match=r"clip=1\.5"):
        clipped_surrogate(log_probs, old, advantages, clip=1.5)
    with pytest.raises(ValueError, match=r"clip_high=-0\.1"):
        clipped_surrogate(log_probs, old, advantages, clip_high=-0.1)
    with pytest.raises(ValueError, match=r"\(B, 1\) for the advantages"):
        clipped_surrogate(log_probs, old, advantages[0])
    with pytest.raises(ValueError, match=r"\(B, 1\) for the advantages"):
        clipped_surrogate(log_probs, old[:, :1], advantages)
    with pytest.raises(ValueError, match="expected bool"):
        policy_loss(log_probs, old, advantages, mask.float())
    with pytest.raises(ValueError, match=r"tensor of shape \(3, 1\)"):
        value_loss(old, old[:, :1], old, mask)
    with pytest.raises(ValueError, match="kind='k4'"):
        kl_estimate(log_probs, old, "k4")
    with pytest.raises(ValueError, match="beta=-1"):
        kl_shaped_rewards(torch.zeros(3), log_probs, old, mask, beta=-1)
    with pytest.raises(ValueError, match=r"scores \(3, 6\): expected \(3,\)"):
        kl_shaped_rewards(old, log_probs, old, mask, beta=1)
    mask[1] = False
    with pytest.raises(ValueError, match="row 1 has no action"):
        last_action(mask)

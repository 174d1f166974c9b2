"""Advantages against sums written out, and what must not change them."""

import pytest
import torch
from helpers import rng

from minillm.align.advantages import gae, group_advantages, informative, whiten


@pytest.fixture
def case():
    rewards, values = torch.randn(2, 4, 7, generator=rng())
    mask = torch.ones(4, 7, dtype=torch.bool)
    mask[0, :3] = False  # a prompt
    mask[1, 5:] = False  # padding
    mask[2, 2:4] = False  # an answer of the environment in between
    mask[3] = False
    return rewards, values, mask


def written_out(rewards, values, gamma, lam, last_value=0.0):
    """A_t = Σ_l (γλ)^l δ_{t+l}, for one row of actions without gaps."""
    n = len(rewards)
    following = [*values[1:], last_value]
    deltas = [rewards[t] + gamma * following[t] - values[t] for t in range(n)]
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, n)) for t in range(n)]


def test_two_actions_by_hand():
    """γ = ½, λ = ½, rewards 1 and 4, values 2 and 3.

    δ₁ = 4 + 0 − 3 = 1, δ₀ = 1 + ½·3 − 2 = ½; A₁ = 1, A₀ = ½ + ¼·1 = ¾; returns ¾ + 2 and 1 + 3.
    """
    rewards, values = torch.tensor([[1.0, 4.0]]), torch.tensor([[2.0, 3.0]])
    advantages, returns = gae(rewards, values, torch.ones(1, 2).bool(), gamma=0.5, lam=0.5)
    assert advantages.tolist() == [[0.75, 1.0]]
    assert returns.tolist() == [[2.75, 4.0]]


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.7, 0.0)])
def test_gae_equals_the_sum_written_out(case, gamma, lam):
    rewards, values, mask = case
    last = torch.tensor([0.3, -0.4, 0.5, 0.6])
    for last_values in (None, last):
        advantages, returns = gae(
            rewards, values, mask, gamma=gamma, lam=lam, last_values=last_values
        )
        assert (advantages[~mask] == 0).all()
        assert (returns[~mask] == 0).all()
        for row in range(4):
            keep = mask[row]
            end = 0.0 if last_values is None else last[row].item()
            expected = written_out(
                rewards[row, keep].tolist(), values[row, keep].tolist(), gamma, lam, end
            )
            assert advantages[row, keep].tolist() == pytest.approx(expected, abs=1e-5)
        torch.testing.assert_close(returns[mask], (advantages + values)[mask])


def test_with_lambda_one_the_return_is_what_really_came(case):
    rewards, values, mask = case
    _, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    to_go = rewards.where(mask, 0.0).flip(1).cumsum(1).flip(1).where(mask, 0.0)
    torch.testing.assert_close(returns, to_go)


def test_what_stands_where_no_action_is_changes_nothing(case):
    """One position more or less in the mask would."""
    rewards, values, mask = case
    noise = 100 * torch.randn(4, 7, generator=rng(5))
    clean = gae(rewards, values, mask, gamma=0.9)
    dirty = gae(rewards.where(mask, noise), values.where(mask, noise), mask, gamma=0.9)
    for a, b in zip(clean, dirty, strict=True):
        torch.testing.assert_close(a, b)
    for row in range(3):
        for t in range(7):
            wrong = mask.clone()
            wrong[row, t] ^= True
            assert not torch.allclose(gae(rewards, values, wrong, gamma=0.9)[0], clean[0])


def test_advantages_carry_no_gradient(case):
    rewards, values, mask = case
    advantages, returns = gae(rewards, values.requires_grad_(), mask)
    assert not advantages.requires_grad
    assert not returns.requires_grad


def test_whitening(case):
    x, _, mask = case
    found = whiten(5 + 3 * x, mask)
    kept = found[mask]
    assert kept.mean().item() == pytest.approx(0, abs=1e-6)
    assert kept.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert (found[~mask] == 0).all()
    torch.testing.assert_close(found, whiten(x, mask), atol=1e-5, rtol=1e-5)
    assert (whiten(torch.full((4, 7), 0.1), mask).abs() < 1e-6).all()
    assert (whiten(x, torch.zeros_like(mask)) == 0).all()


def test_groups_by_hand():
    """Rewards 0, 0, 0, 1: mean ¼, squared deviations 3·1/16 + 9/16 = ¾, std √(¾/3) = ½.

    GRPO ∓: −¼/(½ + 1e-4) and ¾/(½ + 1e-4). Dr. GRPO −¼, ¾. RLOO: the others' mean is ⅓ for a
    wrong answer and 0 for the right one: −⅓ and 1.
    """
    rewards = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    expected = {
        "grpo": [-0.25 / 0.5001, 0.75 / 0.5001],
        "dr_grpo": [-0.25, 0.75],
        "rloo": [-1 / 3, 1.0],
    }
    for method, (wrong, right) in expected.items():
        assert group_advantages(rewards, method).tolist()[0] == pytest.approx([wrong] * 3 + [right])


def test_leave_one_out_written_out():
    rewards = torch.randn(3, 5, generator=rng())
    found = group_advantages(rewards, "rloo")
    for p in range(3):
        for g in range(5):
            others = [rewards[p, i].item() for i in range(5) if i != g]
            assert found[p, g].item() == pytest.approx(
                rewards[p, g].item() - sum(others) / 4, abs=1e-6
            )


@pytest.mark.parametrize("method", ["grpo", "dr_grpo", "rloo"])
def test_a_shift_of_a_groups_rewards_changes_nothing(method):
    rewards = torch.randn(4, 6, generator=rng())
    shift = torch.tensor([[5.0], [-3.0], [0.5], [100.0]])
    found = group_advantages(rewards, method)
    torch.testing.assert_close(group_advantages(rewards + shift, method), found, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.sum(1), torch.zeros(4), atol=1e-5, rtol=0)
    order = torch.randperm(6, generator=rng(1))
    torch.testing.assert_close(group_advantages(rewards[:, order], method), found[:, order])
    scaled = group_advantages(10 * rewards, method)
    torch.testing.assert_close(
        scaled, found if method == "grpo" else 10 * found, atol=2e-3, rtol=1e-3
    )


@pytest.mark.parametrize("method", ["grpo", "dr_grpo", "rloo"])
def test_a_group_of_equals_teaches_exactly_nothing(method):
    """Also where the mean of equal numbers is rounded: 0.1 seven times."""
    rewards = torch.tensor([[0.1] * 7, [0.0] * 7, [0.1] * 6 + [0.2]])
    found = group_advantages(rewards, method)
    assert (found[:2] == 0).all()
    assert (found[2] != 0).all()
    assert informative(rewards).tolist() == [False, False, True]


def test_bad_input_is_refused(case):
    rewards, values, mask = case
    with pytest.raises(ValueError, match=r"gamma=1\.1"):
        gae(rewards, values, mask, gamma=1.1)
    with pytest.raises(ValueError, match="lam=-1"):
        gae(rewards, values, mask, lam=-1)
    with pytest.raises(ValueError, match="expected bool"):
        gae(rewards, values, mask.float())
    with pytest.raises(ValueError, match=r"tensor of shape \(4, 6\)"):
        gae(rewards, values[:, :6], mask)
    with pytest.raises(ValueError, match="method='mean'"):
        group_advantages(rewards, "mean")
    with pytest.raises(ValueError, match=r"torch\.int64 of shape \(1, 2\)"):
        group_advantages(torch.tensor([[0, 1]]))
    with pytest.raises(ValueError, match=r"shape \(3, 1\): expected floats \(P, G\), at least two"):
        group_advantages(torch.zeros(3, 1))

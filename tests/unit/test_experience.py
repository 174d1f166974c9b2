"""Experience for learning by reward: each number against the same one worked out alone."""

import pytest
import torch
from helpers import randomised, rng

from minillm.align.advantages import gae, whiten
from minillm.align.experience import (
    ActorCritic,
    group_experience,
    grpo_objective,
    ppo_experience,
    ppo_objective,
    summary,
)
from minillm.align.grpo import grpo_loss
from minillm.align.logprobs import log_probs, masked_sum
from minillm.align.ppo import kl_shaped_rewards, policy_loss, value_loss
from minillm.align.reward import ScalarModel
from minillm.model.config import llama_config
from minillm.model.transformer import Transformer

PROMPTS = [[2, 3, 4], [5], [6, 7]]
SAMPLING = {"max_new_tokens": 5, "stop_tokens": [1], "n_samples": 4}


def random_model(seed):
    config = llama_config(11, d_model=16, n_layers=2, n_heads=2, max_length=16)
    return randomised(Transformer(config), seed + 100)


def random_critic(seed):
    critic = ScalarModel(random_model(seed))
    with torch.no_grad():
        critic.weight.copy_(torch.randn(16, generator=rng(seed)))
        critic.bias.fill_(0.3)
    return critic


def short_is_good(found):
    """Different within groups, whatever was sampled first."""
    return torch.tensor([-len(row) - i % 2 for i, row in enumerate(found.responses)]).float()


def test_a_group_experience_is_its_parts():
    policy, reference = random_model(0), random_model(1)
    settings = {"reference": reference, "generator": rng(3), "temperature": 1.7, **SAMPLING}
    found = group_experience(policy, PROMPTS, short_is_good, method="dr_grpo", **settings)
    assert found.batch.tokens.shape[0] == 12 and found.n_samples == 4
    groups = found.rewards.view(3, 4)
    expected = (groups - groups.mean(1, keepdim=True)).flatten()
    torch.testing.assert_close(found.advantages, expected)
    for model, kept in ((policy, found.log_probs), (reference, found.ref_log_probs)):
        fresh = log_probs(model, found.batch, temperature=1.7)
        torch.testing.assert_close(kept, fresh.detach(), rtol=1e-5, atol=1e-5)
        assert not kept.requires_grad


def test_the_objective_of_grpo_is_its_loss_at_the_temperature_of_the_samples():
    policy, reference = random_model(0), random_model(1)
    settings = {"reference": reference, "generator": rng(3), "temperature": 1.7, **SAMPLING}
    found = group_experience(policy, PROMPTS, short_is_good, **settings)
    total, n_rows = grpo_objective(by="token", beta=0.2)(policy, found)
    total.backward()
    gradients = [weight.grad.clone() for weight in policy.parameters()]
    policy.zero_grad()
    loss = grpo_loss(
        log_probs(policy, found.batch, temperature=1.7),
        found.log_probs,
        found.advantages,
        found.mask,
        by="token",
        ref_log_probs=found.ref_log_probs,
        beta=0.2,
    )
    (12 * loss).backward()
    assert n_rows == 12
    torch.testing.assert_close(total, 12 * loss)
    for weight, gradient in zip(policy.parameters(), gradients, strict=True):
        torch.testing.assert_close(weight.grad, gradient)


def test_a_ppo_experience_is_its_parts():
    model, reference = ActorCritic(random_model(0), random_critic(2)), random_model(1)
    settings = {"reference": reference, "generator": rng(3), **SAMPLING}
    found = ppo_experience(model, PROMPTS, short_is_good, beta=0.3, gamma=0.9, lam=0.8, **settings)
    mask = found.mask
    with torch.no_grad():
        known = log_probs(reference, found.batch)
        values = model.value(found.batch.tokens) * mask
    shaped = kl_shaped_rewards(found.rewards, found.log_probs, known, mask, 0.3)
    advantages, returns = gae(shaped, values, mask, gamma=0.9, lam=0.8)
    torch.testing.assert_close(found.ref_log_probs, known)
    torch.testing.assert_close(found.values, values)
    torch.testing.assert_close(found.returns, returns)
    torch.testing.assert_close(found.advantages, whiten(advantages, mask))

    total, n_actions = ppo_objective(clip=0.1, value_clip=0.3, value_weight=0.7)(model, found)
    acting = policy_loss(
        log_probs(model.policy, found.batch), found.log_probs, found.advantages, mask, 0.1
    )
    judging = value_loss(model.value(found.batch.tokens), values, returns, mask, 0.3)
    assert n_actions == int(mask.sum())
    torch.testing.assert_close(total, (acting + 0.7 * judging) * n_actions)
    total.backward()
    assert all(weight.grad.abs().sum() > 0 for weight in model.policy.parameters())
    assert model.value.weight.grad.abs().sum() > 0


def test_the_summary_by_hand():
    found = group_experience(
        random_model(0),
        PROMPTS,
        lambda r: torch.tensor([1.0, 0, 0, 0] + [2.0] * 4 + [0.5] * 4),
        reference=random_model(1),
        generator=rng(3),
        **SAMPLING,
    )
    numbers = summary(found)
    mask = found.mask
    assert numbers["reward"] == pytest.approx((1 + 8 + 2) / 12)
    assert numbers["informative"] == pytest.approx(1 / 3)
    assert numbers["length"] == pytest.approx(int(mask.sum()) / 12)
    assert numbers["entropy"] == pytest.approx(-float(found.log_probs.sum() / mask.sum()))
    difference = masked_sum(found.log_probs - found.ref_log_probs, mask)
    assert numbers["kl"] == pytest.approx(float(difference.mean()))


def test_what_is_not_known_is_left_out_and_everything_moves_together():
    model = ActorCritic(random_model(0), random_critic(2))
    settings = {**SAMPLING, "n_samples": 1, "generator": rng(3), "reference": random_model(1)}
    alone = ppo_experience(model, PROMPTS, short_is_good, beta=0.0, **settings)
    assert set(summary(alone)) == {"reward", "length", "entropy", "kl"}
    grouped = group_experience(model.policy, PROMPTS, short_is_good, generator=rng(3), **SAMPLING)
    assert set(summary(grouped)) == {"reward", "length", "entropy", "informative"}
    moved = alone.to("meta")
    assert moved.temperature == 1.0 and moved.batch.tokens.is_meta
    kinds = ("log_probs", "advantages", "rewards", "ref_log_probs", "values", "returns")
    assert all(getattr(moved, kind).is_meta for kind in kinds)


@pytest.mark.parametrize(
    "rewards", [torch.ones(3), torch.ones(12, 1), torch.ones(12, dtype=torch.int64)]
)
def test_rewards_of_another_kind_are_refused(rewards):
    with pytest.raises(ValueError, match=r"expected floats \(12,\), one a response"):
        group_experience(random_model(0), PROMPTS, lambda r: rewards, generator=rng(3), **SAMPLING)

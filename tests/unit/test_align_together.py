"""The parts of alignment put together: each method teaches a tiny model what it is paid for."""

import copy
import itertools

import pytest
import torch
from helpers import rng

from minillm.align.dpo import dpo_loss, simpo_loss
from minillm.align.experience import (
    ActorCritic,
    group_experience,
    grpo_objective,
    ppo_experience,
    ppo_objective,
    summary,
)
from minillm.align.logprobs import masked_row_mean
from minillm.align.preferences import preference_batch, preference_loss
from minillm.align.reward import ScalarModel
from minillm.data.packing import IGNORE, Batch
from minillm.infer.rollout import rollout
from minillm.model.config import llama_config
from minillm.model.transformer import Transformer
from minillm.train.loop import token_loss, train

END, LIKED, LENGTH = 1, 5, 6
PROMPTS = [[2, 3], [4], [6, 7, 8], [9, 2]]


def tiny(seed=0):
    config = llama_config(12, d_model=16, n_layers=1, n_heads=2, max_length=20)
    return Transformer(config, rng(seed))


def sample(policy, generator, n_samples=8):
    settings = {"max_new_tokens": LENGTH, "stop_tokens": [END], "n_samples": n_samples}
    return rollout(policy, PROMPTS, generator=generator, **settings)


def liking(found):
    """How many of the most tokens possible are the liked one, (B,)."""
    return torch.tensor([row.count(LIKED) / LENGTH for row in found.responses])


def brevity(found):
    """1 for a response that ends at once, 0 for one that does not end: only stopping pays."""
    return 1 - torch.tensor([len(row) / LENGTH for row in found.responses])


def grpo_steps(policy, reward, steps):
    generator, curve = rng(1), []

    def experiences():
        settings = {"max_new_tokens": LENGTH, "stop_tokens": [END], "n_samples": 8}
        while True:
            found = group_experience(policy, PROMPTS, reward, generator=generator, **settings)
            curve.append(summary(found)["reward"])
            yield found

    settings = {"lr": 1e-2, "weight_decay": 0.0, "warmup_steps": 0, "progress": False}
    train(policy, experiences(), steps=steps, loss_fn=grpo_objective(by="token"), **settings)
    return curve


def test_grpo_climbs():
    curve = grpo_steps(tiny(), liking, 40)
    assert sum(curve[:3]) / 3 < 0.25
    assert sum(curve[-3:]) / 3 > 0.75


def test_a_policy_whose_end_token_is_no_action_cannot_learn_to_stop():
    """Fine-tuned on the shortest of eight answers; the mask right, and one token too short."""

    def run(hide_end):
        policy, generator = tiny(), rng(1)
        optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2, weight_decay=0.0)
        for _ in range(30):
            found = sample(policy, generator)
            best = brevity(found).view(len(PROMPTS), -1).argmax(1) + 8 * torch.arange(len(PROMPTS))
            targets = found.batch.targets[best]
            if hide_end:
                targets = targets.where(targets != END, IGNORE)
            optimizer.zero_grad()
            loss, _ = token_loss(policy, Batch(found.batch.tokens[best], targets))
            loss.backward()
            optimizer.step()
        return brevity(found).mean().item()

    assert run(hide_end=False) > 0.9
    assert run(hide_end=True) < 0.6


def test_a_reward_that_is_always_the_same_teaches_nothing():
    policy = tiny()
    before = copy.deepcopy(policy.state_dict())
    grpo_steps(policy, lambda found: torch.ones(len(found.responses)), 3)
    assert all(torch.equal(before[name], weight) for name, weight in policy.state_dict().items())


def test_ppo_climbs_and_a_price_on_the_kl_holds_it_back():
    def run(beta):
        model = ActorCritic(tiny(), ScalarModel(tiny(1)))
        reference, generator, history = copy.deepcopy(model.policy), rng(1), []

        def experiences():
            settings = {"max_new_tokens": LENGTH, "stop_tokens": [END], "n_samples": 8}
            settings |= {"reference": reference, "beta": beta, "generator": generator}
            while True:
                found = ppo_experience(model, PROMPTS, liking, **settings)
                history.append(summary(found))
                yield found
                yield found  # a second update on the same samples

        settings = {"lr": 1e-2, "weight_decay": 0.0, "warmup_steps": 0, "progress": False}
        train(model, experiences(), steps=60, loss_fn=ppo_objective(), **settings)
        return history[-1]["reward"], history[-1]["kl"]

    (free, far), (held, near) = run(0.0), run(0.3)
    assert free > 0.75
    assert near < far / 3
    assert held < free


@pytest.mark.parametrize("method", ["dpo", "simpo"])
def test_preferences_teach_in_the_training_loop(method):
    """Of every pair, the response with the liked token is chosen; afterwards it is sampled more."""
    policy = tiny()
    before = liking(sample(policy, rng(2), 64)).mean().item()
    generator = rng(3)
    chosen = [[LIKED, *torch.randint(2, 12, (3,), generator=generator).tolist(), END]] * 4
    rejected = [[3, *torch.randint(2, 12, (4,), generator=generator).tolist(), END]] * 4
    reference = policy if method == "dpo" else None
    pairs = preference_batch(PROMPTS, chosen, rejected, reference)
    loss = {
        "dpo": preference_loss(dpo_loss, beta=0.5),
        "simpo": preference_loss(simpo_loss, masked_row_mean),
    }[method]
    history = train(
        policy, itertools.repeat(pairs), steps=25, lr=5e-3, loss_fn=loss, progress=False
    )
    assert history.losses[-1] < history.losses[0] / 2
    if method == "dpo":
        assert history.losses[0] == pytest.approx(0.693147, abs=1e-5)
    assert liking(sample(policy, rng(2), 64)).mean().item() > before + 0.05


def test_a_preference_loss_is_that_of_its_parts():
    """Two pairs of different lengths, each response scored alone."""
    policy, reference = tiny(), tiny(1)
    prompts, chosen, rejected = [[2, 3], [4]], [[5, 1], [6, 7, 8, 1]], [[3, 3, 1], [9, 1]]

    def alone(model, prompt, response):
        scores = model(torch.tensor([[*prompt, *response]]))[0].log_softmax(-1)
        return sum(scores[len(prompt) - 1 + i, token] for i, token in enumerate(response))

    parts = [
        torch.stack([alone(model, *pair) for pair in zip(prompts, side, strict=True)])
        for model in (policy, reference)
        for side in (chosen, rejected)
    ]
    pairs = preference_batch(prompts, chosen, rejected, reference)
    loss, n_pairs = preference_loss(dpo_loss, beta=0.3)(policy, pairs)
    assert n_pairs == 2
    torch.testing.assert_close(loss, 2 * dpo_loss(*parts, beta=0.3))
    lengths = [torch.tensor([2.0, 4.0]), torch.tensor([3.0, 2.0])]
    means = [part / n for part, n in zip(parts[:2], lengths, strict=True)]
    found, _ = preference_loss(simpo_loss, masked_row_mean, beta=1.5)(
        policy, preference_batch(prompts, chosen, rejected)
    )
    torch.testing.assert_close(found, 2 * simpo_loss(*means, beta=1.5))
    assert not pairs.reference.requires_grad
    assert pairs.to("cpu").reference is not None
    with pytest.raises(ValueError, match="2 prompts, 1 chosen and 2 rejected"):
        preference_batch(prompts, chosen[:1], rejected)

"""KTO on single responses: each number against the same one worked out alone."""

import itertools

import pytest
import torch

from minillm.align.dpo import kto_loss
from minillm.align.unpaired import kto_objective, unpaired_batch
from minillm.infer.rollout import rollout
from minillm.model.config import llama_config
from minillm.model.transformer import Transformer
from minillm.train.loop import train

PROMPTS = [[2, 3], [4], [6, 7, 8]]
RESPONSES = [[5, 1], [6, 7, 9, 1], [3]]
GOOD = [True, False, True]


def tiny(seed):
    """Every parameter random: norms of 1 would hide what they multiply."""
    model = Transformer(llama_config(12, d_model=16, n_layers=1, n_heads=2, max_length=20))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return model


def alone(model, prompts):
    """Log-probability of each response after its prompt, token by token: (B,)."""
    sums = []
    for prompt, response in zip(prompts, RESPONSES, strict=True):
        scores = model(torch.tensor([[*prompt, *response]]))[0].log_softmax(-1)
        sums.append(sum(scores[len(prompt) - 1 + i, t] for i, t in enumerate(response)))
    return torch.stack(sums)


# The reference point is clipped at 0: a pair of models on each side of it.
@pytest.mark.parametrize("seeds", [(0, 1), (1, 0)])
def test_the_objective_is_the_loss_of_its_parts(seeds):
    policy, reference = map(tiny, seeds)
    given = unpaired_batch(PROMPTS, RESPONSES, GOOD, reference)
    found, n = kto_objective(beta=0.3, weights=(1.0, 1.5))(policy, given)
    turned = [PROMPTS[2], PROMPTS[0], PROMPTS[1]]
    point = (alone(policy, turned) - alone(reference, turned)).mean().clamp(min=0).detach()
    expected = kto_loss(
        alone(policy, PROMPTS), alone(reference, PROMPTS), torch.tensor(GOOD), point,
        beta=0.3, weights=(1.0, 1.5),
    )  # fmt: skip
    assert n == 3
    torch.testing.assert_close(found, 3 * expected)
    gradients = [
        torch.autograd.grad(loss, list(policy.parameters())) for loss in (found, 3 * expected)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_two_sides_of_the_reference_point_are_both_tested():
    turned = [PROMPTS[2], PROMPTS[0], PROMPTS[1]]
    gap = (alone(tiny(0), turned) - alone(tiny(1), turned)).mean()
    assert abs(gap) > 0.1


def test_good_responses_become_likelier_and_bad_ones_rarer():
    policy = tiny(0)
    before = alone(policy, PROMPTS).detach()
    given = unpaired_batch(PROMPTS, RESPONSES, GOOD, policy)
    history = train(
        policy, itertools.repeat(given), steps=30, lr=3e-3, weight_decay=0.0,
        loss_fn=kto_objective(beta=0.5), progress=False,
    )  # fmt: skip
    assert history.losses[0] == pytest.approx(0.5, abs=1e-5)  # nothing has moved: σ(0)
    moved = alone(policy, PROMPTS) - before
    assert moved[0] > 0.2 and moved[1] < -0.2 and moved[2] > 0.2


def test_every_part_moves_to_another_device():
    moved = unpaired_batch(PROMPTS, RESPONSES, GOOD, tiny(0)).to("meta")
    parts = (moved.batch.tokens, moved.elsewhere.targets, moved.desirable, moved.reference)
    assert all(part.is_meta for part in (*parts, moved.elsewhere_reference))


def test_a_rollout_can_be_judged_and_learned():
    policy = tiny(0)
    found = rollout(policy, PROMPTS, max_new_tokens=4, stop_tokens=[1])
    given = unpaired_batch(PROMPTS, found.actions, GOOD, policy)
    assert torch.equal(given.batch.targets, found.batch.targets)


@pytest.mark.parametrize(
    "changes", [(PROMPTS[:2], RESPONSES, GOOD), (PROMPTS, RESPONSES, GOOD[:1])]
)
def test_different_numbers_are_refused(changes):
    with pytest.raises(ValueError, match="as many of each, and at least two"):
        unpaired_batch(*changes, tiny(0))
    with pytest.raises(ValueError, match="1 prompts, 1 responses and 1 verdicts"):
        unpaired_batch(PROMPTS[:1], RESPONSES[:1], GOOD[:1], tiny(0))

"""Log-probabilities against torch.distributions, and masks that are off by one position."""

import math

import pytest
import torch
from helpers import randomised, rng
from torch.distributions import Categorical

from minillm.align.logprobs import (
    entropy,
    log_probs,
    masked_mean,
    masked_row_mean,
    masked_sum,
    token_log_probs,
)
from minillm.data.packing import IGNORE
from minillm.infer.rollout import response_batch
from minillm.model.config import llama_config
from minillm.model.transformer import Transformer


@pytest.fixture
def case():
    logits = 3 * torch.randn(3, 5, 11, generator=rng())
    targets = torch.randint(11, (3, 5), generator=rng(1))
    targets[0, :2] = IGNORE
    targets[1, 3:] = IGNORE
    targets[2] = IGNORE
    return logits, targets


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probs_equal_torch_with_gradient(case, temperature):
    logits, targets = case
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    found = token_log_probs(ours, targets, temperature)
    keep = targets != IGNORE
    expected = Categorical(logits=theirs[keep] / temperature).log_prob(targets[keep])
    torch.testing.assert_close(found[keep], expected)
    assert (found[~keep] == 0).all()
    weights = torch.randn(3, 5, generator=rng(2))
    (found * weights).sum().backward()
    (expected * weights[keep]).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_log_probs_by_hand():
    """Logits log 1, log 2, log 5 are probabilities 1/8, 2/8, 5/8."""
    logits = torch.tensor([[[1.0, 2.0, 5.0]] * 3]).log()
    found = token_log_probs(logits, torch.tensor([[2, IGNORE, 0]]))
    assert found.tolist()[0] == pytest.approx([math.log(5 / 8), 0.0, math.log(1 / 8)])


def test_entropy_equals_torch_and_survives_certainty(case):
    logits, _ = case
    torch.testing.assert_close(entropy(logits, 0.7), Categorical(logits=logits / 0.7).entropy())
    certain = torch.tensor([0.0, 900.0, 0.0], requires_grad=True)
    entropy(certain).backward()
    assert entropy(certain).item() == 0
    assert certain.grad.isfinite().all()
    assert entropy(torch.zeros(8)).item() == pytest.approx(math.log(8))


def test_a_model_scores_the_response_and_nothing_else():
    """Every token once by hand; then any change of one mask position changes the sum."""
    config = llama_config(19, d_model=24, n_layers=2, n_heads=4, max_length=20)
    model = randomised(Transformer(config))
    prompts, responses = [[3, 1, 4], [9]], [[2, 6], [5, 3, 5, 8, 1]]
    batch = response_batch(prompts, responses)
    found = log_probs(model, batch)
    sums = []
    for prompt, response in zip(prompts, responses, strict=True):
        total = 0.0
        for i, token in enumerate(response):  # each token from all that came before it
            scores = model(torch.tensor([[*prompt, *response[:i]]]))[0, -1]
            total += scores.log_softmax(-1)[token]
        sums.append(total)
    mask = batch.targets != IGNORE
    torch.testing.assert_close(masked_sum(found, mask), torch.stack(sums))
    everywhere = token_log_probs(model(batch.tokens), batch.tokens.roll(-1, 1))
    for row in range(2):
        for t in range(mask.shape[1]):
            wrong = mask.clone()
            wrong[row, t] ^= True
            assert (masked_sum(everywhere, wrong)[row] - sums[row]).abs() > 1e-3


def test_the_gradient_reaches_every_weight_as_through_all_logits():
    model = Transformer(llama_config(19, d_model=24, n_layers=2, n_heads=4, max_length=20))
    batch = response_batch([[3, 1, 4], [9]], [[2, 6], [5, 3, 5, 8, 1]])
    weights = list(model.parameters())
    ours = torch.autograd.grad(log_probs(model, batch, 0.8).square().sum(), weights)
    plain = token_log_probs(model(batch.tokens), batch.targets, 0.8)
    for a, b in zip(ours, torch.autograd.grad(plain.square().sum(), weights), strict=True):
        torch.testing.assert_close(a, b)


def test_means_by_hand():
    """Rows 1, 2 and 6 kept, and none: sum 9 over 3 actions; row means 1.5, 6 and 0."""
    x = torch.tensor([[1.0, 2.0, math.nan], [5.0, 6.0, 7.0], [8.0, 8.0, 8.0]])
    mask = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 0]]).bool()
    assert masked_sum(x, mask).tolist() == [3, 6, 0]
    assert masked_row_mean(x, mask).tolist() == [1.5, 6, 0]
    assert masked_mean(x, mask).item() == 3
    assert masked_mean(x, torch.zeros_like(mask)).item() == 0


def test_bad_input_is_refused(case):
    logits, targets = case
    with pytest.raises(ValueError, match=r"\(3, 5, 11\) and targets \(3, 4\) do not fit"):
        token_log_probs(logits, targets[:, :4])
    with pytest.raises(ValueError, match="temperature=0: expected a number above 0"):
        token_log_probs(logits, targets, 0)
    with pytest.raises(ValueError, match="temperature=-1"):
        entropy(logits, -1)
    with pytest.raises(ValueError, match=r"the mask is torch\.int64: expected bool"):
        masked_sum(torch.zeros(3, 5), targets)
    with pytest.raises(ValueError, match=r"shape \(3, 5\) for a tensor of shape \(3, 1\)"):
        masked_mean(torch.zeros(3, 1), targets == 0)

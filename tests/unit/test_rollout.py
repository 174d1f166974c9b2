"""Rollouts: what is an action, and how likely the sampling policy found it."""

import pytest
import torch
from helpers import randomised, rng

from minillm.align.logprobs import log_probs
from minillm.data.packing import IGNORE
from minillm.infer.engine import generate
from minillm.infer.rollout import response_batch, rollout
from minillm.infer.sampling import Sampler
from minillm.model.config import gpt2_config, llama_config
from minillm.model.transformer import Transformer

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5]]
STOP = (7, 8)
SIZE = {"d_model": 24, "n_layers": 2, "n_heads": 4, "max_length": 40}


@pytest.fixture(params=["gpt2", "llama"])
def model(request):
    if request.param == "gpt2":
        return randomised(Transformer(gpt2_config(19, **SIZE, tie_embeddings=False)))
    return randomised(Transformer(llama_config(19, **SIZE, n_kv_heads=2)))


def sample(model, n_samples=5, **changes):
    settings = {"max_new_tokens": 9, "stop_tokens": STOP, "generator": rng(3), **changes}
    return rollout(model, PROMPTS, n_samples=n_samples, **settings)


def test_the_batch_of_a_response_by_hand():
    """Position t answers for token t + 1: of [5, 6 | 7, 1], positions 1 and 2 are actions."""
    batch = response_batch([[5, 6], [4]], [[7, 1], [3, 2, 2, 1]])
    x = IGNORE
    assert batch.tokens.tolist() == [[5, 6, 7, 1, 0], [4, 3, 2, 2, 1]]
    assert batch.targets.tolist() == [[x, 7, 1, x, x], [3, 2, 2, 1, x]]


def test_rollouts_are_ragged_and_end_in_all_possible_ways(model):
    """Or the tests below would prove little."""
    found = sample(model)
    lengths = set(map(len, found.responses))
    assert len(lengths) > 3
    assert {True, False} == set(found.finished.tolist())
    for said, response, ended in zip(found.actions, found.responses, found.finished, strict=True):
        assert said[: len(response)] == response
        assert (len(said) == len(response) + 1 and said[-1] in STOP) == bool(ended)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.6])
def test_log_probs_equal_a_fresh_forward(model, temperature):
    found = sample(model, temperature=temperature)
    fresh = log_probs(model, found.batch, temperature)
    torch.testing.assert_close(found.log_probs, fresh.detach(), atol=1e-5, rtol=0)
    other = log_probs(model, found.batch, temperature + 0.3)
    assert (found.log_probs - other).abs().max() > 0.1  # the temperature counts


def test_log_probs_equal_reading_one_text_at_a_time(model):
    """Row by row, without padding, mask or batch; every action, and nothing but the actions."""
    found = sample(model)
    for row, response in enumerate(found.responses):
        prompt = PROMPTS[row // 5]
        text = found.batch.tokens[row].tolist()
        n = len(prompt) + len(response) + found.finished[row].item()
        assert text[: len(prompt) + len(response)] == [*prompt, *response]
        assert not found.finished[row] or text[n - 1] in STOP
        assert not any(text[n:])
        with torch.no_grad():
            scores = model(torch.tensor([text[:n]]))[0].log_softmax(-1)
        expected = torch.zeros(found.log_probs.shape[1])
        for t in range(len(prompt) - 1, n - 1):
            expected[t] = scores[t, text[t + 1]]
        torch.testing.assert_close(found.log_probs[row], expected, atol=1e-5, rtol=0)
        assert torch.equal(found.mask[row], expected != 0)


def test_rollouts_are_what_generate_gives(model):
    settings = {"max_new_tokens": 9, "stop_tokens": STOP}
    for temperature in (1.0, 0.6):
        expected = generate(
            model,
            [prompt for prompt in PROMPTS for _ in range(4)],
            sampler=Sampler(temperature=temperature),
            generator=rng(3),
            **settings,
        )
        found = sample(model, n_samples=4, temperature=temperature)
        assert found.responses == expected
    assert sample(model, n_samples=1, generator=rng(4)).responses == generate(
        model, PROMPTS, generator=rng(4), **settings
    )


def test_a_response_that_is_cut_off_has_no_end_token(model):
    found = sample(model, stop_tokens=(), max_new_tokens=4)
    assert not found.finished.any()
    assert found.mask.sum(1).tolist() == [4] * 15
    assert list(map(len, found.responses)) == [4] * 15


def test_an_answer_that_stops_at_once_is_one_action(model):
    found = sample(model, stop_tokens=range(19))
    assert found.finished.all()
    assert found.responses == [[]] * 15
    assert found.mask.sum(1).tolist() == [1] * 15


def test_samples_are_drawn_as_often_as_they_are_likely(model):
    """One token, 19 kinds: the shares of 4,000 samples against the model's own probabilities."""
    found = rollout(
        model, [[3, 1]], max_new_tokens=1, stop_tokens=(), n_samples=4000, generator=rng()
    )
    with torch.no_grad():
        expected = model(torch.tensor([[3, 1]]))[0, -1].softmax(-1)
    shares = found.batch.targets[:, 1].bincount(minlength=19) / 4000
    assert (shares - expected).abs().max() < 0.03  # about four standard deviations


def test_rollouts_can_be_learned_from(model):
    """Nothing in them is an inference tensor, which autograd would refuse."""
    found = sample(model)
    ratio = (log_probs(model, found.batch) - found.log_probs).exp()
    (ratio * found.log_probs * found.mask).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_samples": 0}, "3 prompts, n_samples=0"),
        ({"temperature": 0.0}, r"temperature=0\.0: expected a number above 0; greedy"),
        ({"max_new_tokens": 40}, "prompt 0 has 5 tokens and 40 are to follow"),
    ],
)
def test_bad_requests_are_refused(model, changes, words):
    with pytest.raises(ValueError, match=words):
        sample(model, **changes)


def test_bad_batches_are_refused(model):
    with pytest.raises(ValueError, match="0 prompts, n_samples=1"):
        rollout(model, [], max_new_tokens=3, stop_tokens=())
    with pytest.raises(ValueError, match="2 prompts and 1 responses"):
        response_batch([[1], [2]], [[3]])
    with pytest.raises(ValueError, match="row 1: prompt and response need at least one token"):
        response_batch([[1], [2]], [[3], []])
    with pytest.raises(ValueError, match="0 prompts and 0 responses"):
        response_batch([], [])

"""Sampling, greedy decoding and beam search against the `transformers` library."""

from itertools import takewhile

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from minillm.infer.beam import beam_search
from minillm.infer.engine import generate
from minillm.infer.sampling import Sampler, min_p, repetition_penalty, temperature, top_k, top_p
from minillm.model.hf import from_published

VOCAB = 23


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=range(3))
def logits(request):
    return 3 * torch.randn(5, 200, generator=rng(request.param))


@pytest.fixture
def history():
    return torch.randint(200, (5, 30), generator=rng(9))


def test_repetition_penalty(logits, history):
    for value in (0.7, 1.3, 2.0):
        theirs = RepetitionPenaltyLogitsProcessor(value)(history, logits.clone())
        torch.testing.assert_close(repetition_penalty(logits, history, value), theirs)


@pytest.mark.parametrize(
    ("ours", "theirs", "values"),
    [
        (temperature, TemperatureLogitsWarper, (0.1, 0.8, 1.7)),
        (top_k, TopKLogitsWarper, (1, 7, 199, 500)),
        (top_p, TopPLogitsWarper, (0.05, 0.5, 0.93, 0.999)),
        (min_p, MinPLogitsWarper, (0.001, 0.05, 0.5, 1.0)),
    ],
)
def test_each_function(logits, ours, theirs, values):
    for value in values:
        torch.testing.assert_close(ours(logits, value), theirs(value)(None, logits.clone()))


def test_all_of_them_in_one_sampler(logits, history):
    chain = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(1.2),
            TemperatureLogitsWarper(1.4),
            TopKLogitsWarper(20),
            TopPLogitsWarper(0.95),
            MinPLogitsWarper(0.06),
        ]
    )
    sampler = Sampler(temperature=1.4, top_k=20, top_p=0.95, min_p=0.06, repetition_penalty=1.2)
    theirs = chain(history, logits.clone()).softmax(-1)
    torch.testing.assert_close(sampler.probabilities(logits, history), theirs)
    for dropped in ("top_k", "top_p", "min_p"):  # each of the three makes a difference here
        changed = Sampler(**{**vars(sampler), dropped: None}).probabilities(logits, history)
        assert not torch.allclose(changed, theirs)


@pytest.fixture(scope="module", params=range(3))
def models(request):
    """One random GPT-2 as theirs and as ours; every parameter random, none at its default."""
    config = GPT2Config(
        vocab_size=VOCAB,
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        bos_token_id=None,
        eos_token_id=None,
    )
    theirs = GPT2LMHeadModel(config).eval()
    generator = rng(request.param)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return theirs, from_published(config.to_dict(), theirs.state_dict())


PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5]]


def their_generate(theirs, prompt, **settings):
    tokens = torch.tensor([prompt])
    out = theirs.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        pad_token_id=0,
        max_new_tokens=20,
        **settings,
    )
    return out[:, len(prompt) :].tolist()


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_of_a_ragged_batch_is_their_greedy_of_each_prompt(models, penalty):
    theirs, ours = models
    expected = [
        their_generate(theirs, prompt, do_sample=False, repetition_penalty=penalty)[0]
        for prompt in PROMPTS
    ]
    sampler = Sampler(temperature=0, repetition_penalty=penalty)
    assert generate(ours, PROMPTS, max_new_tokens=20, sampler=sampler) == expected


@pytest.mark.parametrize("beams", [2, 4])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize("stop", [[], [4], [0, 3, 6, 9, 12, 15, 18, 21]])
def test_beam_search(models, beams, length_penalty, stop):
    """Their option early_stopping="never" is the exact stopping rule, which ours uses too."""
    theirs, ours = models
    for prompt in PROMPTS:
        expected = their_generate(
            theirs,
            prompt,
            do_sample=False,
            num_beams=beams,
            num_return_sequences=beams,
            length_penalty=length_penalty,
            early_stopping="never",
            eos_token_id=stop or None,
        )
        found = beam_search(
            ours,
            prompt,
            beams=beams,
            max_new_tokens=20,
            stop_tokens=stop,
            length_penalty=length_penalty,
        )
        ended = [list(takewhile(lambda token: token not in stop, row)) for row in expected]
        assert [hypothesis.tokens for hypothesis in found] == ended

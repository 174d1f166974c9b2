"""The engine against a plain loop without a cache, alone and in ragged batches."""

import itertools

import pytest
import torch
from helpers import randomised, rng

from minillm.infer import engine
from minillm.infer.beam import beam_search
from minillm.infer.engine import generate, stream
from minillm.infer.sampling import Sampler
from minillm.model.cache import KVCache, close_ranks
from minillm.model.config import gpt2_config, llama_config
from minillm.model.transformer import Transformer

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5]]
GREEDY = Sampler(temperature=0)
SIZE = {"d_model": 24, "n_layers": 2, "n_heads": 4, "max_length": 40}


def random_model(config, seed=0):
    return randomised(Transformer(config), seed + 1)


@pytest.fixture(params=["gpt2", "llama"])
def model(request):
    if request.param == "gpt2":
        return random_model(gpt2_config(19, **SIZE, tie_embeddings=False))
    return random_model(llama_config(19, **SIZE, n_kv_heads=2))


def without_cache(model, prompt, n, sampler=GREEDY):
    """Greedy decoding that reads everything again at every step."""
    tokens = list(prompt)
    for _ in range(n):
        history = torch.tensor([tokens])
        with torch.no_grad():
            logits = model(history)[:, -1]
        tokens.append(sampler(logits, history=history).item())
    return tokens[len(prompt) :]


def token_met_at_different_steps(rows):
    shared = sorted(set.intersection(*map(set, rows)))
    return max(shared, key=lambda token: len({row.index(token) for row in rows}))


def test_greedy_with_a_ragged_batch_equals_a_loop_without_cache(model):
    expected = [without_cache(model, prompt, 20) for prompt in PROMPTS]
    assert generate(model, PROMPTS, max_new_tokens=20, sampler=GREEDY) == expected


def test_repetition_penalty_sees_each_rows_own_prompt_and_new_tokens(model):
    sampler = Sampler(temperature=0, repetition_penalty=1.5)
    expected = [without_cache(model, prompt, 20, sampler) for prompt in PROMPTS]
    assert generate(model, PROMPTS, max_new_tokens=20, sampler=sampler) == expected
    assert expected != [without_cache(model, prompt, 20) for prompt in PROMPTS]
    # The histories stay with their rows when a row leaves the batch.
    stop = token_met_at_different_steps(expected)
    found = generate(model, PROMPTS, max_new_tokens=20, stop_tokens=[stop], sampler=sampler)
    assert found == [list(itertools.takewhile(lambda t: t != stop, row)) for row in expected]
    assert len(set(map(len, found))) > 1


def test_a_stop_token_ends_its_row_only_and_is_not_returned(model):
    free = [without_cache(model, prompt, 20) for prompt in PROMPTS]
    stop = token_met_at_different_steps(free)
    expected = [list(itertools.takewhile(lambda token: token != stop, row)) for row in free]
    assert len({len(row) for row in expected}) > 1  # rows end at different steps
    found = generate(model, PROMPTS, max_new_tokens=20, stop_tokens=[stop], sampler=GREEDY)
    assert found == expected


def test_samples_of_a_row_do_not_depend_on_the_other_rows(model):
    """Nor on how long the others go on: here they stop at different steps."""
    settings = {"max_new_tokens": 15, "stop_tokens": [7, 8]}
    together = generate(model, PROMPTS, generator=rng(5), **settings)
    others = [PROMPTS[0], [1, 1, 1, 1, 1, 1, 1], PROMPTS[2], [18]]
    again = generate(model, others, generator=rng(5), **settings)
    assert [again[0], again[2]] == [together[0], together[2]]
    assert len({len(row) for row in together}) > 1


def test_more_new_tokens_continue_the_same_samples(model):
    short = generate(model, PROMPTS, max_new_tokens=6, generator=rng(5))
    long = generate(model, PROMPTS, max_new_tokens=12, generator=rng(5))
    assert [row[:6] for row in long] == short


def test_the_generator_decides_the_samples(model):
    def samples(seed):
        return generate(model, PROMPTS, max_new_tokens=12, generator=rng(seed))

    assert samples(1) == samples(1)
    assert samples(1) != samples(2)
    assert len(set(map(tuple, generate(model, [[3]] * 6, max_new_tokens=9, generator=rng())))) > 1


def test_finished_rows_leave_the_batch(model, monkeypatch):
    batch_sizes = []
    step = engine.decode_step

    def counted(model, tokens, cache):
        batch_sizes.append(len(tokens))
        return step(model, tokens, cache)

    monkeypatch.setattr(engine, "decode_step", counted)
    free = [without_cache(model, prompt, 20) for prompt in PROMPTS]
    stop = token_met_at_different_steps(free)
    rows = generate(model, PROMPTS, max_new_tokens=20, stop_tokens=[stop], sampler=GREEDY)
    # A row takes part in a step for every token it went on from.
    assert sum(batch_sizes) == sum(map(len, rows))
    assert batch_sizes[-1] < 3


@pytest.mark.parametrize("rows", [[0, 5, 2, 3], [4, 5], [0, 1], [5, 0, 0], [0, 1] * 4, []])
def test_a_cache_keeps_exactly_the_rows_it_is_told_to(model, rows):
    """Fewer than before or more, in inference mode or not."""
    for inference in (False, True):
        with torch.inference_mode(inference):
            cache = KVCache(model.config, 6, 9)
            cache.keys.copy_(torch.randn(cache.keys.shape, generator=rng()))
            cache.values.copy_(torch.randn(cache.values.shape, generator=rng(1)))
            cache.advance([1, 2, 3, 4, 5, 6])
            keys, values = cache.keys.clone(), cache.values.clone()
        cache.keep(torch.tensor(rows, dtype=torch.int64))
        held = slice(6)  # what lies behind the longest row is never read
        assert torch.equal(cache.keys[:, :, :, held], keys[:, rows, :, held])
        assert torch.equal(cache.values[:, :, :, held], values[:, rows, :, held])
        assert cache.lengths.tolist() == [row + 1 for row in rows]


def test_closing_ranks_moves_only_the_last_rows():
    assert close_ranks([0, 2, 3, 5]) == [0, 5, 2, 3]
    assert close_ranks([4, 5]) == [5, 4]
    assert close_ranks([0, 1]) == [0, 1]
    assert close_ranks([]) == []


def test_stream_hands_out_each_token_before_computing_the_next(model, monkeypatch):
    tokens = stream(model, PROMPTS, max_new_tokens=5, sampler=GREEDY)
    first = [next(tokens) for _ in PROMPTS]
    assert [row for row, _ in first] == [0, 1, 2]

    def fail(*_):
        raise AssertionError("a step was taken")

    monkeypatch.setattr(engine, "decode_step", fail)
    with pytest.raises(AssertionError, match="a step was taken"):
        next(tokens)


def test_generation_may_fill_the_context_exactly(model):
    prompt = [1] * 30
    assert generate(model, [prompt], max_new_tokens=10, sampler=GREEDY) == [
        without_cache(model, prompt, 10)
    ]
    assert generate(model, [], max_new_tokens=10) == []


def test_generation_leaves_no_gradients_and_no_trace_in_the_model(model):
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    generate(model, PROMPTS, max_new_tokens=4)
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert model(torch.tensor([[1, 2]])).requires_grad


@pytest.mark.parametrize(
    ("prompts", "n", "words"),
    [
        ([[1], []], 3, "prompt 1 is empty"),
        (["hi"], 3, "prompt 0 is 'hi': expected a list of token ids; encode texts"),
        ([1, 2], 3, "prompt 0 is 1: .* put a single prompt into a list"),
        ([[1, 19]], 3, "outside 0…18"),
        ([[-1]], 3, "outside 0…18"),
        ([[1] * 35], 6, "prompt 0 has 35 tokens and 6 are to follow; the model's max_length is 40"),
        ([[1]], 0, "max_new_tokens must be at least 1, got 0"),
    ],
)
def test_bad_requests_are_refused(model, prompts, n, words):
    with pytest.raises(ValueError, match=words):
        generate(model, prompts, max_new_tokens=n)


def every_continuation(model, prompt, n, stop):
    """Total log-probability of every way to go on for n tokens or until the stop token."""
    totals = {}

    def go_on(tokens, total):
        with torch.no_grad():
            scores = model(torch.tensor([[*prompt, *tokens]]))[0, -1].log_softmax(-1).tolist()
        for token, score in enumerate(scores):
            new = (*tokens, token)
            if token == stop or len(new) == n:
                totals[new] = total + score
            else:
                go_on(new, total + score)

    go_on((), 0.0)
    return totals


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_a_wide_beam_finds_the_best_of_all_continuations(length_penalty):
    """With 5 tokens and 3 steps, 5² beams lose nothing: the search is exhaustive."""
    model = random_model(llama_config(5, d_model=8, n_layers=1, n_heads=2, max_length=10), seed=3)
    totals = every_continuation(model, [1, 2], 3, stop=0)
    best = sorted(totals, key=lambda t: totals[t] / len(t) ** length_penalty, reverse=True)[:4]
    found = beam_search(
        model, [1, 2], beams=25, max_new_tokens=3, stop_tokens=[0], length_penalty=length_penalty
    )
    assert [h.tokens for h in found[:4]] == [[t for t in tokens if t != 0] for tokens in best]
    assert [h.log_prob for h in found[:4]] == pytest.approx([totals[t] for t in best], abs=1e-5)


def test_one_beam_is_greedy(model):
    found = beam_search(model, PROMPTS[0], beams=1, max_new_tokens=12)
    assert [h.tokens for h in found] == [without_cache(model, PROMPTS[0], 12)]


def test_bad_searches_are_refused(model):
    with pytest.raises(ValueError, match="beams=0"):
        beam_search(model, [1], beams=0, max_new_tokens=3)
    with pytest.raises(ValueError, match="length_penalty=-1"):
        beam_search(model, [1], beams=2, max_new_tokens=3, length_penalty=-1.0)
    with pytest.raises(ValueError, match="prompt 0 is empty"):
        beam_search(model, [], beams=2, max_new_tokens=3)

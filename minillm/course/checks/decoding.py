"""Checks for the exercises of lesson 06. Each names the mistake it recognises.

B batch, T time, V vocabulary, N places in texts.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from minillm.course.checks.common import (
    assert_close,
    assert_equal,
    assert_shape,
    assert_type,
    assert_unchanged,
    refuses,
)
from minillm.model.config import gpt2_config
from minillm.model.transformer import Transformer


def top_p(student: Callable, *, p: float = 0.7, seed: int = 0) -> None:
    """The nucleus of each row, on rows whose words are not sorted."""
    generator = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(3, 7, generator=generator)
    wanted = _nucleus(logits, p)
    assert_unchanged(lambda x: student(x, p), logits, name="top_p")
    result = student(logits, p)
    assert_shape(result, logits.shape, "top_p(logits, p)")

    def only(kept: Tensor, rest: float = -math.inf) -> Tensor:
        return logits.masked_fill(~kept, rest)

    ordered, order = logits.sort(-1, descending=True)
    mass = ordered.softmax(-1).cumsum(-1)
    before = mass - ordered.softmax(-1)
    ascending = logits.sort(-1).values.softmax(-1).cumsum(-1)
    ranks = order.argsort(-1)
    assert_close(
        result,
        only(wanted),
        name="top_p(logits, p)",
        mistakes={
            "the word that crosses p is missing: it belongs to the nucleus": only(
                (mass <= p).gather(-1, ranks)
            ),
            "your mask is still in sorted order: put it back into the order of the words": only(
                before < p
            ),
            "ruled-out words need a logit of -inf: a logit of 0 is a perfectly good score": only(
                wanted, 0.0
            ),
            "you keep the least likely words: sort in descending order": only(
                (ascending - logits.sort(-1).values.softmax(-1) < p).gather(
                    -1, logits.argsort(-1).argsort(-1)
                )
            ),
            "every row has a nucleus of its own; yours all use the first row's": only(
                wanted[:1].expand_as(wanted)
            ),
            "return logits, not probabilities": only(wanted).softmax(-1),
            "p is a probability: take the softmax before you add up": only(
                (ordered.cumsum(-1) - ordered < p).gather(-1, ranks)
            ),
        },
    )
    assert_close(student(logits, 1.0), logits, name="top_p(logits, 1.0), which keeps everything,")
    best = logits == logits.amax(-1, keepdim=True)
    assert_close(
        student(logits, 1e-6), only(best), name="top_p(logits, 1e-6), which keeps the best word,"
    )
    for bad in (0.0, 1.5):
        refuses(student, logits, bad, words=str(bad))


def _nucleus(logits: Tensor, p: float) -> Tensor:
    """Bool (B, V), by adding up one word at a time."""
    kept = torch.zeros_like(logits, dtype=torch.bool)
    for row, chances in enumerate(logits.softmax(-1).tolist()):
        mass = 0.0
        for i in sorted(range(len(chances)), key=lambda i: -chances[i]):
            if mass >= p:
                break
            kept[row, i] = True
            mass += chances[i]
    return kept


def llama2_70b_cache(student: Callable, *, n_tokens: int = 4096) -> None:
    """Bytes of the cache, with grouped heads and with one key/value head for each query head."""
    head = 80 * 128 * n_tokens * 2  # bytes of the keys of one head in all layers
    results = [student(n_tokens, grouped=grouped) for grouped in (True, False)]
    for result in results:
        assert_type(result, int, f"llama2_70b_cache({n_tokens}, …)")
    assert_equal(
        results,
        [2 * head * 8, 2 * head * 64],
        name=f"the bytes of {n_tokens} tokens, grouped and not grouped,",
        mistakes={
            "keys and values are both kept, in 2 bytes a number: you miss a factor of 2": [
                head * 8,
                head * 64,
            ],
            "each number takes 2 bytes (16 bits), not 4": [4 * head * 8, 4 * head * 64],
            "grouped and not grouped are the wrong way round": [2 * head * 64, 2 * head * 8],
            "a key has 8192 / 64 = 128 numbers, whether heads are grouped or not": [
                2 * head * 64,
                2 * head * 64,
            ],
            "all 80 layers keep keys and values; you count one": [
                2 * head * 8 // 80,
                2 * head * 64 // 80,
            ],
        },
    )
    refuses(student, 0, grouped=True, words="0")


def next_tokens(student: Callable, *, seed: int = 0) -> None:
    """One batched call that gives each prompt the answer it gets alone."""
    generator = torch.Generator().manual_seed(seed)
    size = {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_length": 16, "tie_embeddings": False}
    model = Transformer(gpt2_config(40, **size), generator)
    with torch.no_grad():  # so that words and positions speak up
        model.embedding.weight.mul_(100)
        model.position_embedding.weight.mul_(70)
    lengths = (3, 9, 1, 9, 6)
    prompts = [torch.randint(1, 40, (n,), generator=generator).tolist() for n in lengths]
    kept = [list(prompt) for prompt in prompts]
    calls = []
    hook = model.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0].shape))
    try:
        result = student(model, prompts)
        n_calls = len(calls)
        refuses(student, model, [[1, 2], []], words="empty|prompt 1")
    finally:
        hook.remove()
    assert_equal(prompts, kept, name="the list of prompts after the call (do not change it)")

    @torch.no_grad()
    def answers(read: Callable[[Tensor, int], Tensor], left: bool = False) -> list[int]:
        longest = max(lengths)
        rows = [
            [0] * (longest - len(p)) + p if left else p + [0] * (longest - len(p)) for p in prompts
        ]
        logits = model(torch.tensor(rows))
        return [read(row, len(p)).argmax().item() for row, p in zip(logits, prompts, strict=True)]

    with torch.no_grad():
        alone = [model(torch.tensor([prompt]))[0, -1].argmax().item() for prompt in prompts]
    assert_type(result, list, "next_tokens(model, prompts)")
    assert_equal(
        [int(token) for token in result],
        alone,
        name="next_tokens(model, prompts)",
        mistakes={
            "you read the last column, which is padding for the shorter prompts": answers(
                lambda row, n: row[-1]
            ),
            "padding on the left moves the prompts to later positions, which this model learned "
            "apart: pad on the right": answers(lambda row, n: row[-1], left=True),
            "you read one position too early: the last token of n stands at n - 1": answers(
                lambda row, n: row[n - 2]
            ),
            "you read one position too late: the last token of n stands at n - 1": answers(
                lambda row, n: row[min(n, len(row) - 1)]
            ),
            "you read every row at the length of the shortest prompt": answers(
                lambda row, n: row[min(lengths) - 1]
            ),
        },
    )
    if n_calls != 1:
        raise AssertionError(
            f"you call the model {n_calls} times: pad the prompts and call it once"
        )


def beam_search(student: Callable, *, seed: int = 0) -> None:
    """On a tree where greedy loses, then on random ones of five words."""
    first = {(): [0.6, 0.4], (0,): [0.55, 0.45], (1,): [0.05, 0.95]}

    def tree(texts: list[list[int]]) -> Tensor:
        return torch.tensor([first[tuple(text[1:])] for text in texts]).log()

    _compare_beams(student, tree, [7], n_beams=2, n_steps=2)
    generator = torch.Generator().manual_seed(seed)
    tables = 2 * torch.randn(5, 5, 5, generator=generator)  # by the last two words

    def model(texts: list[list[int]]) -> Tensor:
        return torch.stack([tables[t[-2], t[-1]].log_softmax(-1) for t in texts])

    for n_beams in (1, 3, 7):
        _compare_beams(student, model, [1, 4], n_beams, n_steps=4)
    refuses(student, model, [1, 4], 0, 4, words="0")


def _compare_beams(student, log_probs, prompt, n_beams, n_steps) -> None:
    found = student(log_probs, prompt, n_beams, n_steps)
    name = f"beam_search with n_beams={n_beams}, n_steps={n_steps}"
    assert_type(found, list, name)
    for item in found:
        if not (isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], list)):
            raise AssertionError(f"{name}: expected a list of (tokens, log-probability) pairs")
    expected = _beams(log_probs, prompt, n_beams, n_steps)
    tokens, scores = [pair[0] for pair in found], [float(pair[1]) for pair in found]
    right = [pair[0] for pair in expected]
    if len({tuple(t) for t in tokens}) < len(tokens):
        raise AssertionError(
            "the same text stands in two beams: begin with one beam, not with equal copies"
        )
    if len(right) > 1:
        alone = _beams(log_probs, prompt, n_beams, n_steps, own_best_only=True)
        mistakes = {
            "return the new tokens only, without the prompt": [[*prompt, *t] for t in right],
            "the best text comes first; yours are the other way round": right[::-1],
            "each of your beams goes on with its own best word: the best n_beams of *all* "
            "extensions must go on": [pair[0] for pair in alone],
            "this is greedy decoding: all n_beams texts are asked for": [
                _beams(log_probs, prompt, 1, n_steps)[0][0]
            ],
        }
    else:
        mistakes = {"return the new tokens only, without the prompt": [[*prompt, *right[0]]]}
    assert_equal(tokens, right, name=f"the texts of {name}", mistakes=mistakes)
    totals = [pair[1] for pair in expected]
    last = [_last_step(log_probs, prompt, t) for t in right]
    assert_close(
        scores,
        totals,
        name=f"the log-probabilities of {name}",
        mistakes={
            "add up the log-probabilities of all words; yours is the last word's": last,
            "return the log-probability, not the probability": [math.exp(t) for t in totals],
            "return the total, not the mean over the words": [t / n_steps for t in totals],
        },
    )


def _beams(log_probs, prompt, n_beams, n_steps, own_best_only=False) -> list:
    beams = [([], 0.0)]
    for _ in range(n_steps):
        extended = []
        for tokens, total in beams:
            scores = enumerate(log_probs([[*prompt, *tokens]])[0].tolist())
            options = [([*tokens, i], total + score) for i, score in scores]
            options.sort(key=lambda pair: -pair[1])
            # The first step fills the beams also where each then goes on alone.
            alone = own_best_only and tokens
            extended += options[:1] if alone else options
        beams = sorted(extended, key=lambda pair: -pair[1])[:n_beams]
    return beams


def _last_step(log_probs, prompt, tokens) -> float:
    return log_probs([[*prompt, *tokens[:-1]]])[0, tokens[-1]].item()


def choose_p(student: Callable, *, seed: int = 0) -> None:
    """The largest p that keeps the share of impossible words within the limit."""
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.rand(6, 30, generator=generator) < 0.6
    allowed[:, 0] = True
    logits = 1.2 * torch.randn(6, 30, generator=generator) + 3.0 * allowed
    chances = logits.softmax(-1)
    candidates = [0.95, 0.5, 1.0, 0.8, 0.99, 0.9]  # in no order

    def wrong(p: float, again: bool = True) -> float:
        left = chances * _nucleus(chances.log(), p)
        if again:
            left = left / left.sum(-1, keepdim=True)
        return (left * ~allowed).sum(-1).mean().item()

    measured = {p: wrong(p) for p in candidates}
    raw = {p: wrong(p, again=False) for p in candidates}
    values = sorted(measured.values())
    limits = [(low + high) / 2 for low, high in pairwise(values)] + [values[-1] + 0.01]
    # Between the two, so that it shows whether the rest was made to add up to 1.
    limits += [(raw[p] + measured[p]) / 2 for p in candidates if measured[p] > raw[p] + 1e-5]

    def answer(limit: float) -> float:
        try:
            return float(student(chances, allowed, candidates, limit))
        except ValueError:
            return math.nan

    def chosen(choose: Callable, fits: Callable[[float, float], bool]) -> list[float]:
        fitting = [[p for p in candidates if fits(p, limit)] for limit in limits]
        return [choose(ps) if ps else math.nan for ps in fitting]

    def keeps(p: float, limit: float) -> bool:
        return measured[p] <= limit

    assert_close(
        [answer(limit) for limit in limits],
        chosen(max, keeps),
        name="the list of your choices for growing limits (nan: ValueError)",
        mistakes={
            "the words that are left must add up to 1 again before you measure": chosen(
                max, lambda p, limit: raw[p] <= limit
            ),
            "of the values that fit, the largest is asked for: it keeps most variety": chosen(
                min, keeps
            ),
            "you return the first that fits; the candidates are in no order": chosen(
                lambda ps: ps[0], keeps
            ),
            "you return the last that fits; the candidates are in no order": chosen(
                lambda ps: ps[-1], keeps
            ),
            "you limit the share of possible words, not of impossible ones": chosen(
                max, lambda p, limit: 1 - measured[p] <= limit
            ),
            "your choices break the limit: at most that share is allowed": chosen(
                max, lambda p, limit: measured[p] > limit
            ),
        },
    )
    refuses(student, chances, allowed, candidates, -1.0, words="limit")

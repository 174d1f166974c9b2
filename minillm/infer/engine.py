"""Batched generation on the key/value cache.

Prompts of different lengths are padded on the right and read in one pass (prefill); then every
step feeds one new token a row. A row that meets a stop token leaves the batch at once, so the
rows that are left do not pay for it.

Randomness: each prompt gets a generator of its own, seeded from the one passed in, so what a row
samples depends on that seed and on its place in the list, never on the other prompts, on when
they stop, or on `max_new_tokens`.

Tensor legend: B batch, T time, C channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.infer.sampling import Sampler
from minillm.model.cache import KVCache, close_ranks
from minillm.model.transformer import Transformer

PADDING = -1  # in histories only; in the token batch itself padding is token 0 and never read


def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_tokens: Sequence[int] = (),
    sampler: Sampler | None = None,
    generator: torch.Generator | None = None,
    cache_type: type[KVCache] = KVCache,
) -> list[list[int]]:
    """Continue every prompt; returns the new tokens of each, without the stop token.

    Args:
        model: on any device; its cache is made here and dropped afterwards.
        prompts: token ids, lengths may differ, each at least one token.
        max_new_tokens: most tokens to add to a prompt. The longest prompt and its new tokens
            must fit in `model.config.max_length`.
        stop_tokens: ids that end a row.
        sampler: default `Sampler()`, plain sampling; `Sampler(temperature=0)` is greedy.
        generator: where the rows' seeds come from; None takes them from the global generator.
        cache_type: what holds the keys and values, such as `adapt.quant_cache.Int8Cache`.

    Raises:
        ValueError: an empty prompt, an id outside the vocabulary, or no room for the new tokens.
    """
    continuations: list[list[int]] = [[] for _ in prompts]
    for row, token in stream(
        model,
        prompts,
        max_new_tokens=max_new_tokens,
        stop_tokens=stop_tokens,
        sampler=sampler,
        generator=generator,
        cache_type=cache_type,
    ):
        continuations[row].append(token)
    return continuations


def stream(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_tokens: Sequence[int] = (),
    sampler: Sampler | None = None,
    generator: torch.Generator | None = None,
    cache_type: type[KVCache] = KVCache,
) -> Iterator[tuple[int, int]]:
    """Yield (row, token) as soon as each is chosen; arguments as for `generate`."""
    check_prompts(model, prompts, max_new_tokens)
    if not prompts:
        return
    for step in steps(
        model,
        prompts,
        max_new_tokens=max_new_tokens,
        stop_tokens=stop_tokens,
        sampler=sampler,
        generator=generator,
        cache_type=cache_type,
    ):
        for row, token in zip(step.rows, step.tokens.tolist(), strict=True):
            if token not in stop_tokens:
                yield row, token


@dataclass(frozen=True)
class Step:
    """One new token for every row that is still going.

    rows: which rows; rows[i] is what the other two hold at place i.
    tokens: (b,) int64, stop tokens included.
    logits: (b, V), from which the tokens were chosen.
    """

    rows: list[int]
    tokens: Tensor
    logits: Tensor


def steps(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_tokens: Sequence[int] = (),
    sampler: Sampler | None = None,
    generator: torch.Generator | None = None,
    cache_type: type[KVCache] = KVCache,
    n_samples: int = 1,
) -> Iterator[Step]:
    """The loop behind `stream` and `rollout`: yields each step before computing the next.

    With `n_samples` above 1 every prompt is read once and continued so many times: row
    i · n_samples + j is sample j of prompt i. Other arguments as for `generate`.
    """
    sampler = sampler or Sampler()
    uniforms = uniform_rows(len(prompts) * n_samples, max_new_tokens, generator)
    logits, cache = prefill(model, prompts, len_new=max_new_tokens, cache_type=cache_type)
    rows = list(range(len(prompts) * n_samples))  # rows[i] is what batch row i continues
    if n_samples > 1:
        copies = torch.tensor(rows, device=logits.device) // n_samples
        cache.keep(copies)
        logits = logits[copies]
    histories = None
    if sampler.repetition_penalty != 1:
        histories = _histories(prompts, max_new_tokens, model.device)
        histories = histories.repeat_interleave(n_samples, dim=0)

    for step in range(max_new_tokens):
        tokens = sampler.choose(logits, uniforms[:, step].to(logits.device), histories)
        yield Step(rows, tokens, logits)
        going = [i for i, token in enumerate(tokens.tolist()) if token not in stop_tokens]
        if not going or step + 1 == max_new_tokens:
            return
        if histories is not None:
            histories[:, step - max_new_tokens] = tokens
        if len(going) < len(rows):
            going = close_ranks(going)
            kept = torch.tensor(going, device=tokens.device)
            cache.keep(kept)
            tokens, uniforms = tokens[kept], uniforms[kept.to(uniforms.device)]
            rows = [rows[i] for i in going]
            histories = None if histories is None else histories[kept]
        logits = decode_step(model, tokens, cache)


@torch.inference_mode()
def prefill(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    len_new: int,
    cache_type: type[KVCache] = KVCache,
) -> tuple[Tensor, KVCache]:
    """Read all prompts at once: logits (B, V) after each prompt's last token, and the cache.

    The cache has room for `len_new` more tokens a row. Only the last position is unembedded:
    over a large vocabulary the others would cost more than the rest of the pass.
    """
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
    longest = int(lengths.max())
    tokens = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts])
    dtype = next(model.parameters()).dtype
    cache = cache_type(model.config, len(prompts), longest + len_new, model.device, dtype)
    hidden = model.hidden(tokens.to(model.device), cache=cache)  # (B, T, C)
    cache.advance(lengths)
    last = hidden[torch.arange(len(prompts), device=model.device), lengths - 1]
    return model.logits(last), cache


@torch.inference_mode()
def decode_step(model: Transformer, tokens: Tensor, cache: KVCache) -> Tensor:
    """Feed one new token a row, (B,) int64; returns logits (B, V) for the token after it."""
    hidden = model.hidden(tokens[:, None], cache=cache)
    cache.advance(1)
    return model.logits(hidden[:, 0])


def check_prompts(
    model: Transformer, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> None:
    """Refuse what would fail deep inside the model with a message that does not help."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    config = model.config
    for row, prompt in enumerate(prompts):
        if isinstance(prompt, str | int):
            raise ValueError(
                f"prompt {row} is {prompt!r}: expected a list of token ids; encode texts with the "
                "model's tokenizer, and put a single prompt into a list"
            )
        if len(prompt) == 0:
            raise ValueError(
                f"prompt {row} is empty; start from at least one token, such as the end token"
            )
        if min(prompt) < 0 or max(prompt) >= config.vocab_size:
            raise ValueError(
                f"prompt {row} holds an id outside 0…{config.vocab_size - 1}; was it encoded with "
                "this model's tokenizer?"
            )
        if len(prompt) + max_new_tokens > config.max_length:
            raise ValueError(
                f"prompt {row} has {len(prompt)} tokens and {max_new_tokens} are to follow; the "
                f"model's max_length is {config.max_length}, shorten one of them"
            )


def uniform_rows(n_rows: int, n_steps: int, generator: torch.Generator | None) -> Tensor:
    """One seed a row, then that row's whole stream of numbers in [0, 1): (B, n_steps) float64.

    Drawn on the CPU, so that every device samples with the same numbers.
    """
    device = "cpu" if generator is None else generator.device
    seeds = torch.randint(2**62, (n_rows,), generator=generator, device=device).tolist()
    streams = [
        torch.rand(n_steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed in seeds
    ]
    return torch.stack(streams)


def _histories(prompts: Sequence[Sequence[int]], len_new: int, device: torch.device) -> Tensor:
    """Prompts (B, T + len_new), padded on the left; new tokens fill the columns on the right."""
    longest = max(map(len, prompts))
    padded = [[PADDING] * (longest - len(p)) + list(p) + [PADDING] * len_new for p in prompts]
    return torch.tensor(padded, device=device)

"""Proxy tuning: steer a large model at decoding time with what a small one has learned.

The large model's weights are never touched, and need not be known: its logits are moved by the
difference that tuning made to a small model with the same vocabulary (Liu et al. 2024).

Shapes: B batch, T time, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minillm.infer.engine import check_prompts, decode_step, prefill
from minillm.infer.sampling import Sampler
from minillm.model.transformer import Transformer


def proxy_logits(large: Tensor, tuned: Tensor, untuned: Tensor, strength: float = 1.0) -> Tensor:
    """large + strength · (tuned − untuned), all (…, V).

    After softmax this is the large model's distribution times (tuned / untuned)^strength.

    Raises:
        ValueError: shapes that differ, and so vocabularies.
    """
    if not large.shape == tuned.shape == untuned.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (large, tuned, untuned))
        raise ValueError(f"logits {shapes}: the three models must share one vocabulary")
    return large + strength * (tuned - untuned)


def proxy_generate(
    large: Transformer,
    tuned: Transformer,
    untuned: Transformer,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    strength: float = 1.0,
    stop_tokens: Sequence[int] = (),
    sampler: Sampler | None = None,
    generator: torch.Generator | None = None,
) -> list[int]:
    """Continue one prompt with three models in step, each on a cache of its own.

    Args:
        tuned, untuned: the small model after and before tuning.
        strength: 0 is the large model alone.
        stop_tokens, sampler, generator: as for `generate`, but for a repetition penalty.

    Returns:
        The new tokens, without the stop token.

    Raises:
        ValueError: vocabularies that differ, or a prompt that one of the models cannot read.
    """
    models, sampler = (large, tuned, untuned), sampler or Sampler()
    for model in models:
        check_prompts(model, [prompt], max_new_tokens)
    read = [prefill(model, [prompt], len_new=max_new_tokens) for model in models]
    logits, caches = zip(*read, strict=True)
    new: list[int] = []
    while True:
        token = sampler(proxy_logits(*logits, strength), generator)  # (1,)
        if int(token) in stop_tokens:
            return new
        new.append(int(token))
        if len(new) == max_new_tokens:
            return new
        logits = [decode_step(m, token, c) for m, c in zip(models, caches, strict=True)]

"""Early exit: easy tokens leave the model before its last layer.

After some layers stands an *exit*, a small head that names the next token from what the layers so
far have made of it. If it is sure enough the rest is skipped. Later tokens will look at this one in
the skipped layers, too: their keys and values are made from the state at the exit, as if those
layers had changed nothing.

Unlike speculative decoding this changes what is written. The threshold says how much.

Source: Schuster et al. 2022, *Confident Adaptive Language Modeling*, §3.

Tensor legend: T time, C channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minillm.infer.engine import check_prompts
from minillm.infer.sampling import Sampler
from minillm.infer.speculative import fresh, make_cache
from minillm.model.cache import KVCache
from minillm.model.layers import make_norm
from minillm.model.transformer import Transformer


class ExitHead(nn.Module):
    """Scores from the middle of a model: (…, C) → (…, V).

    A correction of the state and a norm of its own; the output matrix is the model's. At first the
    correction is zero, and the norm a copy of the model's last one.
    """

    def __init__(self, model: Transformer):
        super().__init__()
        C = model.config.d_model
        self.correct = nn.Linear(C, C, bias=False)
        nn.init.zeros_(self.correct.weight)
        self.norm = make_norm(model.config)
        self.norm.load_state_dict(model.norm.state_dict())
        self.logits = model.logits  # a function: the matrix stays the model's alone
        self.to(model.device)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.norm(x + self.correct(x)))


class EarlyText(NamedTuple):
    """New tokens, the stop token excluded, and how many layers each step took."""

    tokens: list[int]
    layers: list[int]


def states_after(model: Transformer, tokens: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
    """The residual stream after so many layers: (B, T) → (B, T, C) each. For training exits."""
    positions = torch.arange(tokens.shape[1], device=tokens.device)
    x = model.embed(tokens, positions)
    view, states = model.view(x, positions), {}
    for n, block in enumerate(model.blocks, start=1):
        x = block(x, view)
        if n in layers:
            states[n] = x
    return states


def confidence(logits: Tensor) -> Tensor:
    """How far the likeliest token is ahead of the second, in probability: (…, V) → (…)."""
    best = logits.softmax(-1).topk(2, dim=-1).values
    return best[..., 0] - best[..., 1]


@torch.inference_mode()
def generate_early(
    model: Transformer,
    prompt: Sequence[int],
    exits: Mapping[int, nn.Module],
    threshold: float,
    *,
    max_new_tokens: int,
    stop_tokens: Sequence[int] = (),
    sampler: Sampler | None = None,
    generator: torch.Generator | None = None,
) -> EarlyText:
    """Continue one prompt, and leave at the first exit that is sure.

    The prompt itself is read by all layers, since it is read in one pass.

    Args:
        exits: a head (…, C) → (…, V) for each number of layers after which one may leave.
        threshold: least `confidence` to leave with; above 1 nobody does, at 0 everybody at once.
        sampler: default greedy.

    Raises:
        ValueError: as `generate`; an exit that is not between two layers; a model whose blocks do
            not begin with a norm and ordinary attention.
    """
    sampler = sampler or Sampler(temperature=0)
    check_prompts(model, [prompt], max_new_tokens)
    check_exits(model, exits)
    cache = make_cache(model, len(prompt) + max_new_tokens)
    hidden = model.hidden(torch.tensor([list(prompt)], device=model.device), cache=cache)
    cache.advance(len(prompt))
    logits, tokens, layers = model.logits(hidden[:, -1]), [], [len(model.blocks)]
    while True:
        token = int(sampler.choose(logits, fresh(generator, 1).to(logits.device)))
        if token in stop_tokens:
            return EarlyText(tokens, layers)
        tokens.append(token)
        if len(tokens) == max_new_tokens:
            return EarlyText(tokens, layers)
        logits, n_layers = early_step(model, token, cache, exits, threshold)
        layers.append(n_layers)


def early_step(
    model: Transformer, token: int, cache: KVCache, exits: Mapping[int, nn.Module], threshold: float
) -> tuple[Tensor, int]:
    """Feed one token; returns logits (1, V) for the token after it, and the layers it took."""
    positions = cache.positions(1)
    x = model.embed(torch.tensor([[token]], device=model.device), positions)  # (1, 1, C)
    view = model.view(x, positions, cache)
    for n, block in enumerate(model.blocks, start=1):
        x = block(x, view, cache)
        if n in exits:
            logits = exits[n](x[:, 0])
            if confidence(logits).item() >= threshold:
                for skipped in model.blocks[n:]:
                    _, k, v = skipped.attention.heads(skipped.attention_norm(x), view.rotation)
                    cache.append(skipped.attention.layer, k, v)
                cache.advance(1)
                return logits, n
    cache.advance(1)
    return model.logits(model.norm(x)[:, 0]), len(model.blocks)


def check_exits(model: Transformer, exits: Mapping[int, nn.Module]) -> None:
    """Refuse exits where there are none, and blocks whose keys cannot be made from a state."""
    n_layers = len(model.blocks)
    if not all(1 <= n < n_layers for n in exits):
        raise ValueError(
            f"exits after {sorted(exits)} layers: expected 1 to {n_layers - 1}, the model has "
            f"{n_layers}"
        )
    config = model.config
    if config.norm_place not in ("pre", "sandwich") or config.latent or config.cross_attention:
        raise ValueError(
            f"norm_place={config.norm_place!r}: early exit needs blocks that begin with a norm and "
            "ordinary attention, so that skipped keys can be made from a state"
        )

"""What single attention heads do: where they look, and what is lost without them.

    maps = attention_maps(model, tokens)
    scores = prefix_matching_score(maps, tokens)     # which heads are induction heads?
    with heads_off(model, best_heads(scores, 2)):    # and is the skill gone without them?
        model(tokens)

Shapes: L layers, B batch, T time, H heads, D value channels of a head.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from minillm.model.transformer import Transformer

Head = tuple[int, int]  # layer, head


def previous_token_score(maps: Tensor) -> Tensor:
    """How much each head looks at the token just before: (L, B, H, T, T) → (L, H), 0 to 1.

    The mean weight from position t on t − 1, over the rows and all t ≥ 1.

    Raises:
        ValueError: rows of a single token.
    """
    if maps.shape[-1] < 2:
        raise ValueError("rows of a single token have no token before: expected T of at least 2")
    return maps.diagonal(-1, dim1=-2, dim2=-1).mean(dim=(1, 3))


def prefix_matching_score(maps: Tensor, tokens: Tensor) -> Tensor:
    """How much each head looks at what followed the same token before: → (L, H), 0 to 1.

    The weight from a position t on all earlier positions s whose *preceding* token is the one at
    t, tokens[s − 1] = tokens[t], s < t; averaged over the positions that have such an s. A head
    that scores high completes A B … A with B: an induction head (Olsson et al. 2022). Measure on
    random tokens (`minillm.data.repeats`), where nothing but the rule tells where to look.

    Args:
        maps: (L, B, H, T, T), of `attention_maps`; tokens: int64 (B, T).

    Raises:
        ValueError: no token has one of its kind before it.
    """
    matches = followers_of_the_same(tokens)
    has_match = matches.any(dim=-1)  # (B, T)
    if not has_match.any():
        raise ValueError("no token occurs twice with another behind it: measure on repeated tokens")
    weight = (maps * matches[:, None]).sum(dim=-1)  # (L, B, H, T)
    return weight.sum(dim=(1, 3)) / has_match.sum()


def followers_of_the_same(tokens: Tensor) -> Tensor:
    """Where a perfect induction head may look: int64 (B, T) → bool (B, T queries, T keys).

    >>> followers_of_the_same(torch.tensor([[7, 2, 7, 2]]))[0].int().tolist()
    [[0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
    """
    same = tokens[:, :, None] == tokens[:, None, :]  # query t, key s
    followed = torch.zeros_like(same)
    followed[:, :, 1:] = same[:, :, :-1]
    return followed.tril(-1)


def best_heads(scores: Tensor, n: int) -> list[Head]:
    """The n heads with the highest scores (L, H), best first.

    Raises:
        ValueError: n is not between 1 and the number of heads.
    """
    if not 1 <= n <= scores.numel():
        raise ValueError(f"n={n}: expected 1 to {scores.numel()} heads")
    n_heads = scores.shape[1]
    return [divmod(place, n_heads) for place in scores.flatten().topk(n).indices.tolist()]


@contextmanager
def heads_off(model: Transformer, heads: Iterable[Head], to: str = "zero") -> Iterator[None]:
    """Take what some heads say away, for the time of a ``with`` block: ablation (消融).

    Args:
        heads: (layer, head) pairs.
        to: "zero", the head says nothing; "mean", it says to every position of every row the
            mean of what it would have said in this pass. What a head always says the layers above
            may count on, so its mean is the milder question: what does it say *here*?

    Raises:
        ValueError: a head that is not there, or another word than these two.
    """
    if to not in ("zero", "mean"):
        raise ValueError(f"to={to!r}: expected 'zero' or 'mean'")
    chosen: dict[int, list[int]] = {}
    for layer, head in heads:
        if not (0 <= layer < len(model.blocks) and 0 <= head < model.config.n_heads):
            raise ValueError(
                f"there is no head {head} in layer {layer}: the model has {len(model.blocks)} "
                f"layers of {model.config.n_heads} heads"
            )
        chosen.setdefault(layer, []).append(head)
    hooks = [
        model.blocks[layer].attention.out.register_forward_pre_hook(_silencer(those, model, to))
        for layer, those in chosen.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _silencer(heads: list[int], model: Transformer, to: str):
    """A hook that changes the input of ``attention.out``, all heads' values side by side."""

    def silence(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (mixed,) = inputs  # (B, T, H·D)
        by_head = mixed.unflatten(-1, (model.config.n_heads, -1)).clone()
        said = by_head[:, :, heads]
        by_head[:, :, heads] = 0.0 if to == "zero" else said.mean(dim=(0, 1))
        return (by_head.flatten(-2),)

    return silence

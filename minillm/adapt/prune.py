"""Leave weights out: single ones, two of every four, or whole heads and layers.

A mask is boolean, True for the weights that stay. Scores say how much a weight matters; the
masks keep the highest.

Shapes: C columns (inputs of a layer), D rows (its outputs), H heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from minillm.model.config import ModelConfig
from minillm.model.transformer import Transformer


def magnitude(weight: Tensor) -> Tensor:
    """A weight matters as much as it is large: (D, C) → (D, C)."""
    return weight.detach().abs()


def wanda(weight: Tensor, gram: Tensor) -> Tensor:
    """A weight matters as much as what it passes on: |w| times the norm of its input channel.

    (Sun et al. 2024, eq. 1.)

    Args:
        weight: (D, C).
        gram: (C, C), XᵀX of the layer's inputs on calibration text (see `gptq.input_grams`).
    """
    return weight.detach().abs() * gram.diagonal().clamp(min=0).sqrt()


def keep_share(scores: Tensor, sparsity: float, by_row: bool = True) -> Tensor:
    """Mask that drops the ``sparsity`` share of lowest scores, of each row or of the whole matrix.

    Wanda compares within a row, because all weights of a row add up to the same output (§3).

    Returns:
        bool (D, C); exactly ⌊sparsity · n⌋ of every n are False.

    Raises:
        ValueError: a sparsity outside 0 … 1.
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity={sparsity}: expected a share between 0 and 1")
    rows = scores if by_row else scores.flatten()[None]
    n_dropped = int(sparsity * rows.shape[1])
    # Which are the lowest is enough to know; their order would take five times as long.
    dropped = rows.topk(n_dropped, dim=1, largest=False, sorted=False).indices
    mask = torch.ones_like(rows, dtype=torch.bool).scatter(1, dropped, False)
    return mask.view_as(scores)


def keep_two_of_four(scores: Tensor) -> Tensor:
    """Mask with two weights left in every four neighbours, the pattern that GPUs run faster.

    (Mishra et al. 2021, §3.)

    Raises:
        ValueError: columns that four does not divide.
    """
    if scores.shape[1] % 4:
        raise ValueError(f"{scores.shape[1]} columns: expected a multiple of 4")
    return keep_share(scores.reshape(-1, 4), 0.5).view_as(scores)


@torch.no_grad()
def apply_masks(model: nn.Module, masks: dict[str, Tensor]) -> None:
    """Set what the masks leave out to zero, in place: layer name → bool (D, C).

    Raises:
        ValueError: a mask of another type or shape than its weight.
    """
    for name, mask in masks.items():
        weight = model.get_submodule(name).weight
        if mask.shape != weight.shape or mask.dtype != torch.bool:
            raise ValueError(
                f"the mask of {name} is {mask.dtype} of shape {tuple(mask.shape)}: expected bool "
                f"of shape {tuple(weight.shape)}"
            )
        weight *= mask


def hold_masks(model: nn.Module, masks: dict[str, Tensor]) -> list[RemovableHandle]:
    """Apply masks, and keep what they leave out at zero while the model is trained further.

    Otherwise the next step of any optimiser brings the weights back. Their gradients become zero,
    and then AdamW moves them no more, whatever its decay; it must be a new AdamW, without running
    means from before.

    Returns:
        Handles; ``handle.remove()`` lets the weights of one layer move again.

    Raises:
        ValueError: as `apply_masks`.
    """
    apply_masks(model, masks)
    return [
        model.get_submodule(name).weight.register_hook(mask.mul) for name, mask in masks.items()
    ]


def drop_layers(model: Transformer, keep: Sequence[int]) -> Transformer:
    """A model of the named layers only, in the given order; weights are shared, not copied.

    Raises:
        ValueError: a layer that is not there, or none.
    """
    n_layers = model.config.n_layers
    if not keep or not all(0 <= layer < n_layers for layer in keep):
        raise ValueError(f"keep={list(keep)}: expected layers from 0 to {n_layers - 1}")
    config = _changed(model.config, n_layers=len(keep))
    weights = {}
    for name, tensor in model.state_dict().items():
        if not name.startswith("blocks."):
            weights[name] = tensor
    for new, old in enumerate(keep):
        for name, tensor in model.blocks[old].state_dict().items():
            weights[f"blocks.{new}.{name}"] = tensor
    return _rebuilt(config, weights)


def drop_heads(model: Transformer, keep: Sequence[int]) -> Transformer:
    """A model with the same few heads left in every layer, really smaller.

    Args:
        keep: numbers of the key/value heads that stay, each with its query heads.

    Raises:
        ValueError: a head that is not there, or none; or latent attention, whose heads share all.
    """
    c = model.config
    if c.latent or c.qk_norm == "all":
        raise ValueError("the heads of this attention cannot be taken apart")
    if not keep or not all(0 <= head < c.n_kv_heads for head in keep):
        raise ValueError(f"keep={list(keep)}: expected heads from 0 to {c.n_kv_heads - 1}")
    group, weights = c.n_heads // c.n_kv_heads, dict(model.state_dict())
    for i, block in enumerate(model.blocks):
        name = f"blocks.{i}.attention."
        for kind in ("weight", "bias"):
            if f"{name}qkv.{kind}" in weights:
                parts = weights[f"{name}qkv.{kind}"].split(block.attention.sizes)
                heads = [part.unflatten(0, (c.n_kv_heads, -1))[list(keep)] for part in parts]
                weights[f"{name}qkv.{kind}"] = torch.cat([head.flatten(0, 1) for head in heads])
        out = weights[f"{name}out.weight"].unflatten(1, (c.n_kv_heads, -1))
        weights[f"{name}out.weight"] = out[:, list(keep)].flatten(1)
    return _rebuilt(_changed(c, n_kv_heads=len(keep), n_heads=group * len(keep)), weights)


def _changed(config: ModelConfig, **changes) -> ModelConfig:
    return ModelConfig.from_dict({**config.to_dict(), **changes})


def _rebuilt(config: ModelConfig, weights: dict[str, Tensor]) -> Transformer:
    if config.tie_embeddings:
        weights.pop("unembed.weight")
    return Transformer.from_weights(config, weights)

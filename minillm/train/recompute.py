"""Activation checkpointing: remember what goes into each block, compute the rest again.

The backward pass needs what the forward pass computed. Kept, that grows with depth times length
and soon outweighs the model. Recomputed, a block at a time, it costs one more forward pass and the
memory of a single block (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost").

Shapes: B batch, T time, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minillm.model.cache import KVCache
from minillm.model.masks import View
from minillm.train.precision import imitated_products


def checkpoint_blocks(model: nn.Module) -> None:
    """From now on a model keeps only the input of each block for the backward pass.

    Logits and gradients stay the same, bit for bit. Names of parameters do not change, so
    adapters, files and optimisers notice nothing. Without gradients, and with a cache, blocks run
    as before. Changes ``model`` in place, adapters and quantised layers included; calling it twice
    is calling it once.

    Raises:
        ValueError: the model has no ``blocks``; of an `EncoderDecoder` pass both halves.
    """
    for block in _blocks(model):
        if "forward" not in vars(block):
            block.forward = partial(_recomputed, block.forward)


def keep_activations(model: nn.Module) -> None:
    """Undo `checkpoint_blocks`."""
    for block in _blocks(model):
        vars(block).pop("forward", None)


def _blocks(model: nn.Module) -> nn.ModuleList:
    if not hasattr(model, "blocks"):
        raise ValueError(f"a {type(model).__name__} has no blocks: expected a Transformer")
    return model.blocks


def _recomputed(forward: Callable, x: Tensor, view: View, cache: KVCache | None = None) -> Tensor:
    """(B, T, C) → (B, T, C). Blocks draw no random numbers, so there is no state to restore."""
    if cache is not None or not torch.is_grad_enabled():
        return forward(x, view, cache)

    def twice_the_same(*args) -> Tensor:
        with imitated_products():  # PyTorch brings only its own autocast back for the second time
            return forward(*args)

    return checkpoint(twice_the_same, x, view, use_reentrant=False, preserve_rng_state=False)

"""A family's table from a dictionary: our modules → the published ones that hold their weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from minillm.model.config import ModelConfig
from minillm.model.layouts import SAME, Layout, Row, linear, rows

Names = Mapping[str, str | tuple[str, ...]]


def named_table(
    config: ModelConfig,
    names: Names,
    layouts: Mapping[str, Layout] | None = None,
) -> Iterator[Row]:
    """The rows of the modules in ``names``, weights and biases.

    Args:
        names: ours → theirs, with ``{}`` for the number of a layer; several stand one below the
            other in ours. A tied output is left out.
        layouts: for modules whose tensors lie otherwise in files, by the end of our name.
    """
    for ours, theirs in names.items():
        if ours.endswith("unembed") and config.tie_embeddings:
            continue
        theirs = (theirs,) if isinstance(theirs, str) else theirs
        usual = SAME if len(theirs) == 1 else joined(config, ours, len(theirs))
        layout = next((w for end, w in (layouts or {}).items() if ours.endswith(end)), usual)
        for i in range(config.n_layers) if "{}" in ours else [0]:
            each = [name.format(i) for name in theirs]
            yield from linear(ours.format(i), *each, bias=has_bias(config, ours), layout=layout)


def joined(config: ModelConfig, module: str, n: int) -> Layout:
    """Several published tensors in one: queries, keys and values by their heads, others equally."""
    if module.endswith("attention.qkv"):
        return qkv_rows(config)
    return Layout(torch.cat, lambda tensor: list(tensor.chunk(n)))


def qkv_rows(config: ModelConfig) -> Layout:
    heads = (config.n_heads, config.n_kv_heads, config.n_kv_heads)
    return rows(*[n * config.head_dim for n in heads])


def has_bias(config: ModelConfig, module: str) -> bool:
    """Whether this module of ours has a bias beside its weight."""
    if module.endswith("norm"):
        return config.norm == "layer" and config.norm_bias
    if module.endswith(("attention.qkv", "attention.q", "attention.kv")):
        return config.qkv_bias
    return module.startswith(("blocks", "encoder.blocks", "decoder.blocks")) and config.bias

"""Phi-3 and Phi-4 (Abdin et al. 2024): Llama with fused tensors, and LongRoPE for long texts."""

from __future__ import annotations

from collections.abc import Iterator

from minillm.model.config import ModelConfig
from minillm.model.families.common import expect
from minillm.model.families.decoder import (
    decoder_table,
    fused_mlp_rows,
    read_decoder,
    read_window,
    write_decoder,
)
from minillm.model.layouts import Row, linear


def read(published: dict) -> ModelConfig:
    expect(published, attention_bias=False, mlp_bias=False)
    config = read_decoder(published, **read_window(published))
    scaling = config.rope.scaling
    if scaling and scaling.kind != "longrope":
        raise ValueError(f"a phi3 scales its rotations by 'longrope' only, not {scaling.kind!r}")
    return config


def write(config: ModelConfig) -> dict:
    fields = write_decoder(config, "Phi3ForCausalLM", sliding_window=config.window)
    if config.rope.scaling:
        original = config.rope.scaling.original_length
        fields["original_max_position_embeddings"] = original
    return fields


def table(config: ModelConfig) -> Iterator[Row]:
    return decoder_table(config, attention=fused_attention_rows, mlp=fused_mlp_rows)


def fused_attention_rows(config: ModelConfig, ours: str, theirs: str) -> Iterator[Row]:
    """Queries, keys and values in one tensor, in our order."""
    yield from linear(f"{ours}.qkv", f"{theirs}.qkv_proj")
    yield from linear(f"{ours}.out", f"{theirs}.o_proj")

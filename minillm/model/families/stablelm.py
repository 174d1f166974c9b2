"""StableLM (Bellagente et al. 2024): Llama with LayerNorm, turning a quarter of each head."""

from __future__ import annotations

from collections.abc import Iterator

from minillm.model.config import ModelConfig
from minillm.model.families.common import expect, read_rope
from minillm.model.families.decoder import (
    PRE_NORMS,
    decoder_table,
    read_decoder,
    write_decoder,
)
from minillm.model.layouts import Row


def read(published: dict) -> ModelConfig:
    expect(published, qk_layernorm=False)
    parallel = published.get("use_parallel_residual", False)
    return read_decoder(
        published,
        norm="layer",
        norm_bias=True,
        norm_eps=published["layer_norm_eps"],
        head_dim=None,
        qkv_bias=published.get("use_qkv_bias", False),
        residual="parallel_one_norm" if parallel else "sequential",
        rope=read_rope(published, fraction=0.25),
    )


def write(config: ModelConfig) -> dict:
    return write_decoder(
        config,
        "StableLmForCausalLM",
        layer_norm_eps=config.norm_eps,
        use_qkv_bias=config.qkv_bias,
        use_parallel_residual=config.residual == "parallel_one_norm",
        partial_rotary_factor=config.rope.fraction,
    )


def table(config: ModelConfig) -> Iterator[Row]:
    parallel = config.residual == "parallel_one_norm"
    norms = {"attention_norm": "input_layernorm"} if parallel else PRE_NORMS
    return decoder_table(config, norms=norms)

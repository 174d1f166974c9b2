"""GLM-4 (GLM team 2024): turns neighbouring channels, and only half of each head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from minillm.model.config import ModelConfig
from minillm.model.families.common import read_rope
from minillm.model.families.decoder import (
    decoder_table,
    fused_mlp_rows,
    read_decoder,
    write_decoder,
)
from minillm.model.layouts import Row


def read(published: dict, **choices: Any) -> ModelConfig:
    return read_decoder(
        published,
        head_dim=published.get("head_dim") or 128,
        qkv_bias=published.get("attention_bias", True),
        rope=read_rope(published, fraction=0.5, pairs="interleaved"),
        **choices,
    )


def write(config: ModelConfig, architecture: str = "GlmForCausalLM") -> dict:
    return write_decoder(
        config,
        architecture,
        attention_bias=config.qkv_bias,
        partial_rotary_factor=config.rope.fraction,
    )


def table(config: ModelConfig) -> Iterator[Row]:
    return decoder_table(config, mlp=fused_mlp_rows)

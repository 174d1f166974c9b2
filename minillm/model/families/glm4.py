"""GLM-4-0414 (Z.ai 2025): GLM-4 with norms around both halves of a block."""

from __future__ import annotations

from collections.abc import Iterator

from minillm.model.config import ModelConfig
from minillm.model.families import glm
from minillm.model.families.decoder import decoder_table, fused_mlp_rows
from minillm.model.layouts import Row

NORMS = {
    "attention_norm": "input_layernorm",
    "attention_out_norm": "post_self_attn_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "mlp_out_norm": "post_mlp_layernorm",
}


def read(published: dict) -> ModelConfig:
    return glm.read(published, norm_place="sandwich")


def write(config: ModelConfig) -> dict:
    return glm.write(config, "Glm4ForCausalLM")


def table(config: ModelConfig) -> Iterator[Row]:
    return decoder_table(config, norms=NORMS, mlp=fused_mlp_rows)

"""Qwen 3 MoE (Yang et al. 2025): Qwen 3 with many small experts and no shared one."""

from __future__ import annotations

from minillm.model.config import ModelConfig
from minillm.model.families.common import expect
from minillm.model.families.decoder import decoder_table, read_decoder, write_decoder
from minillm.model.families.qwen2_moe import read_experts, write_experts

table = decoder_table


def read(published: dict) -> ModelConfig:
    expect(published, attention_bias=False, use_sliding_window=False)
    return read_decoder(published, moe=read_experts(published), qk_norm="head")


def write(config: ModelConfig) -> dict:
    return write_decoder(config, "Qwen3MoeForCausalLM", **write_experts(config))

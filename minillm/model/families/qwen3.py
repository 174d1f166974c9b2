"""Qwen 3 (Yang et al. 2025): norms on the queries and keys of each head in place of biases."""

from __future__ import annotations

from minillm.model.config import ModelConfig
from minillm.model.families.common import expect
from minillm.model.families.decoder import decoder_table, read_decoder, write_decoder
from minillm.model.families.qwen2 import read_late_window, write_late_window

table = decoder_table


def read(published: dict) -> ModelConfig:
    expect(published, attention_bias=False)
    head_dim = published.get("head_dim") or 128
    return read_decoder(published, qk_norm="head", head_dim=head_dim, **read_late_window(published))


def write(config: ModelConfig) -> dict:
    return write_decoder(config, "Qwen3ForCausalLM", **write_late_window(config))

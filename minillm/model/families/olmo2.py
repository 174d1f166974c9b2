"""OLMo 2 (OLMo team 2024): norms after each half, and on all query and key channels at once."""

from __future__ import annotations

from collections.abc import Iterator

from minillm.model.config import ModelConfig
from minillm.model.families.common import expect
from minillm.model.families.decoder import decoder_table, read_decoder, write_decoder
from minillm.model.layouts import Row

NORMS = {
    "attention_out_norm": "post_attention_layernorm",
    "mlp_out_norm": "post_feedforward_layernorm",
}


def read(published: dict) -> ModelConfig:
    expect(published, attention_bias=False)
    return read_decoder(published, norm_place="output", qk_norm="all")


def write(config: ModelConfig) -> dict:
    return write_decoder(config, "Olmo2ForCausalLM")


def table(config: ModelConfig) -> Iterator[Row]:
    return decoder_table(config, norms=NORMS)

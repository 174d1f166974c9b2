"""Mistral 7B (Jiang et al. 2023): Llama whose queries see a window."""

from __future__ import annotations

from minillm.model.config import ModelConfig
from minillm.model.families.decoder import (
    decoder_table,
    read_decoder,
    read_window,
    write_decoder,
)

table = decoder_table


def read(published: dict) -> ModelConfig:
    published.setdefault("sliding_window", 4096)
    return read_decoder(published, **read_window(published))


def write(config: ModelConfig) -> dict:
    return write_decoder(config, "MistralForCausalLM", sliding_window=config.window)

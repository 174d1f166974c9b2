"""Llama 1–3.x (Touvron et al. 2023; Grattafiori et al. 2024), SmolLM2, and what copies them."""

from __future__ import annotations

from collections.abc import Iterator

from minillm.model.config import ModelConfig
from minillm.model.families.decoder import decoder_table, read_decoder, write_decoder
from minillm.model.layouts import Row


def read(published: dict) -> ModelConfig:
    biases = bool(published.get("attention_bias")), bool(published.get("mlp_bias"))
    if biases[0] != biases[1]:
        raise ValueError(
            f"config.json has attention_bias, mlp_bias = {biases}: supported are both or neither"
        )
    return read_decoder(published, bias=biases[0], norm_bias=False)


def write(config: ModelConfig) -> dict:
    biases = {"attention_bias": config.bias, "mlp_bias": config.bias}
    return write_decoder(config, "LlamaForCausalLM", **biases)


def table(config: ModelConfig) -> Iterator[Row]:
    return decoder_table(config)

"""Qwen 1.5, 2 and 2.5 (Yang et al. 2024): Llama with biases on queries, keys and values."""

from __future__ import annotations

from minillm.model.config import ModelConfig
from minillm.model.families.decoder import (
    decoder_table,
    read_decoder,
    read_window,
    write_decoder,
    write_layer_types,
)

table = decoder_table


def read(published: dict) -> ModelConfig:
    return read_decoder(published, qkv_bias=True, **read_late_window(published))


def write(config: ModelConfig) -> dict:
    return write_decoder(config, "Qwen2ForCausalLM", **write_late_window(config))


def read_late_window(published: dict) -> dict:
    """Qwen's window, if it is switched on, begins at some layer."""
    if not published.get("use_sliding_window", False):
        return {}
    first, n_layers = published.get("max_window_layers", 28), published["num_hidden_layers"]
    kinds = ["full_attention" if i < first else "sliding_attention" for i in range(n_layers)]
    return read_window(published, kinds)


def write_late_window(config: ModelConfig) -> dict:
    return {
        "use_sliding_window": config.window is not None,
        "sliding_window": config.window,
        "max_window_layers": len(config.global_layers) if config.window else config.n_layers,
        "layer_types": write_layer_types(config),
    }

"""SmolLM3 (Bakouch et al. 2025): Llama in which every fourth layer has no positions."""

from __future__ import annotations

from minillm.model.config import ModelConfig
from minillm.model.families.common import expect, read_rope
from minillm.model.families.decoder import decoder_table, read_decoder, write_decoder

table = decoder_table


def read(published: dict) -> ModelConfig:
    expect(published, attention_bias=False, mlp_bias=False, use_sliding_window=False)
    n_layers, interval = published["num_hidden_layers"], published.get("no_rope_layer_interval", 4)
    turns = published.get("no_rope_layers") or [(i + 1) % interval for i in range(n_layers)]
    skipped = tuple(i for i, turn in enumerate(turns[:n_layers]) if not turn)
    return read_decoder(
        published,
        rope=read_rope(published, base=2_000_000.0, skip_layers=skipped),
        tie_embeddings=published.get("tie_word_embeddings", True),
    )


def write(config: ModelConfig) -> dict:
    """The field is named after the layers without positions and holds 1 for those with them."""
    turns = [int(i not in config.rope.skip_layers) for i in range(config.n_layers)]
    return write_decoder(config, "SmolLM3ForCausalLM", no_rope_layers=turns)

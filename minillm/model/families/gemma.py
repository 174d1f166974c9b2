"""Gemma (Mesnard et al. 2024): GeGLU, loud embeddings, and norms that multiply by 1 + weight."""

from __future__ import annotations

import math
from collections.abc import Iterator

from minillm.model.config import ModelConfig
from minillm.model.families.common import expect
from minillm.model.families.decoder import decoder_table, read_decoder, write_decoder
from minillm.model.layouts import PLUS_ONE, Row


def read(published: dict) -> ModelConfig:
    """Early files name the activation "gelu" and mean its tanh approximation."""
    expect(published, attention_bias=False, use_bidirectional_attention=False)
    kind = published.get("hidden_activation") or published.get("hidden_act") or "gelu"
    if kind not in ("gelu", "gelu_pytorch_tanh"):
        raise ValueError(f"config.json has the activation {kind!r}: a gemma has 'gelu'")
    return read_decoder(
        published,
        mlp="geglu_tanh",
        head_dim=published.get("head_dim") or 256,
        embedding_scale=math.sqrt(published["hidden_size"]),
        tie_embeddings=published.get("tie_word_embeddings", True),
    )


def write(config: ModelConfig) -> dict:
    return write_decoder(config, "GemmaForCausalLM")


def table(config: ModelConfig) -> Iterator[Row]:
    return decoder_table(config, norm_layout=PLUS_ONE)

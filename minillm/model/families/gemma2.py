"""Gemma 2 (Rivière et al. 2024): every other layer sees a window; norms around both halves."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from minillm.model.config import ModelConfig
from minillm.model.families import gemma
from minillm.model.families.common import published_activation
from minillm.model.families.decoder import (
    decoder_table,
    read_window,
    write_decoder,
    write_layer_types,
)
from minillm.model.layouts import PLUS_ONE, Row

NORMS = {
    "attention_norm": "input_layernorm",
    "attention_out_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_out_norm": "post_feedforward_layernorm",
}


def read(published: dict) -> ModelConfig:
    n_layers = published["num_hidden_layers"]
    kinds = [("sliding_attention", "full_attention")[i % 2] for i in range(n_layers)]
    return dataclasses.replace(
        gemma.read(published),
        norm_place="sandwich",
        attention_scale=published["query_pre_attn_scalar"] ** -0.5,
        attention_softcap=published["attn_logit_softcapping"],
        logit_softcap=published["final_logit_softcapping"],
        **read_window(published, kinds),
    )


def write(config: ModelConfig) -> dict:
    fields = write_decoder(config, "Gemma2ForCausalLM")
    del fields["hidden_act"]
    scale = config.attention_scale or config.head_dim**-0.5
    return fields | {
        "hidden_activation": published_activation(config.mlp),
        "query_pre_attn_scalar": round(scale**-2),
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
        "sliding_window": config.window,
        "layer_types": write_layer_types(config),
    }


def table(config: ModelConfig) -> Iterator[Row]:
    return decoder_table(config, norms=NORMS, norm_layout=PLUS_ONE)

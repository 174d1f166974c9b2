"""GPT-1 (Radford et al. 2018): GPT-2 with each norm after the sum, and none at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from minillm.model.config import ModelConfig
from minillm.model.families import gpt2
from minillm.model.families.common import expect
from minillm.model.families.naming import named_table
from minillm.model.layouts import Row

TABLES = {
    "embedding": "transformer.tokens_embed",
    "position_embedding": "transformer.positions_embed",
}
NAMES = {ours: theirs for ours, theirs in gpt2.NAMES.items() if ours != "norm"} | TABLES


def read(published: dict) -> ModelConfig:
    # "gelu" is the tanh formula in these files, and no field says how wide the MLP is.
    expect(published, afn="gelu", n_inner=4 * published["n_embd"])
    config = gpt2.read(published | {"activation_function": "gelu_new"})
    return dataclasses.replace(config, norm_place="post")


def write(config: ModelConfig) -> dict:
    fields = gpt2.write(config)
    return fields | {"architectures": ["OpenAIGPTLMHeadModel"], "afn": "gelu"}


def table(config: ModelConfig) -> Iterator[Row]:
    return named_table(config, NAMES, gpt2.LAYOUTS)


canonical = gpt2.canonical

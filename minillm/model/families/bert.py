"""BERT (Devlin et al. 2019) and its distilled children (MiniLM), with and without its output.

Three things are folded away. Every token belongs to segment 0 here, so that segment's vector is
added to all positions; a file written from our model has segment vectors of zero. The pooler and
the next-sentence head are dropped: nobody uses the second, and sentence embeddings are means of
the tokens (`minillm.infer.embed`). The output matrix is the embedding.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from minillm.model.config import ModelConfig
from minillm.model.families.common import (
    activation,
    expect,
    published_activation,
    read_sizes,
    write_sizes,
)
from minillm.model.families.naming import named_table
from minillm.model.layouts import SAME, Layout, Row

N_SEGMENTS = 2
LAYER = "bert.encoder.layer.{}"
NAMES = {
    "embedding": "bert.embeddings.word_embeddings",
    "embedding_norm": "bert.embeddings.LayerNorm",
    "blocks.{}.attention.qkv": tuple(
        f"{LAYER}.attention.self.{part}" for part in ("query", "key", "value")
    ),
    "blocks.{}.attention.out": f"{LAYER}.attention.output.dense",
    "blocks.{}.attention_norm": f"{LAYER}.attention.output.LayerNorm",
    "blocks.{}.mlp.up": f"{LAYER}.intermediate.dense",
    "blocks.{}.mlp.down": f"{LAYER}.output.dense",
    "blocks.{}.mlp_norm": f"{LAYER}.output.LayerNorm",
}
HEAD = {
    "unembed.dense.weight": "transform.dense.weight",
    "unembed.dense.bias": "transform.dense.bias",
    "unembed.norm.weight": "transform.LayerNorm.weight",
    "unembed.norm.bias": "transform.LayerNorm.bias",
    "unembed.bias": "bias",
}
WITH_OUTPUT = ("BertForMaskedLM", "BertForPreTraining")


def read(published: dict) -> ModelConfig:
    expect(published, is_decoder=False, position_embedding_type="absolute")
    expect(published, type_vocab_size=N_SEGMENTS, tie_word_embeddings=True)
    return ModelConfig(
        **read_sizes(published),
        d_ff=published["intermediate_size"],
        mask="bidirectional",
        norm_place="post",
        norm_eps=published["layer_norm_eps"],
        mlp=activation(published, "hidden_act"),
        embedding_norm=True,
        mlm_head=any(name in WITH_OUTPUT for name in published.get("architectures") or []),
    )


def write(config: ModelConfig) -> dict:
    return {
        "architectures": ["BertForMaskedLM" if config.mlm_head else "BertModel"],
        **write_sizes(config),
        "intermediate_size": config.d_ff,
        "type_vocab_size": N_SEGMENTS,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": published_activation(config.mlp),
    }


def with_segment_0(parts: list[Tensor]) -> Tensor:
    """Positions (T, C) and segments (2, C) → positions of texts that are all segment 0."""
    positions, segments = parts
    return positions + segments[0]


def without_segments(positions: Tensor) -> list[Tensor]:
    return [positions, positions.new_zeros(N_SEGMENTS, positions.shape[1])]


def table(config: ModelConfig) -> Iterator[Row]:
    yield from named_table(config, NAMES)
    tables = [f"bert.embeddings.{kind}_embeddings.weight" for kind in ("position", "token_type")]
    folded = Layout(with_segment_0, without_segments)
    yield Row("position_embedding.weight", tuple(tables), folded)
    for ours, theirs in HEAD.items() if config.mlm_head else ():
        yield Row(ours, (f"cls.predictions.{theirs}",), SAME)


def canonical(name: str) -> str | None:
    """Some files leave out the prefix, use the norms' old names, or store what is dropped here."""
    dropped = ("pooler.", "cls.seq_relationship", "cls.predictions.decoder", "position_ids")
    if any(part in name for part in dropped):
        return None
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
    name = name.replace("LayerNorm.beta", "LayerNorm.bias")
    return name if name.startswith(("bert.", "cls.")) else f"bert.{name}"

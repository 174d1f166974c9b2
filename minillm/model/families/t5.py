"""T5 (Raffel et al. 2020), T5 1.1 and Flan-T5 (Chung et al. 2022): an encoder and a decoder.

Relative positions shared by all layers of a stack, RMSNorm, no biases, and scores that are not
divided by √D. The first version has a ReLU and an output tied to the embedding, scaled by
1/√d_model; version 1.1 has a gated MLP and an output matrix of its own, not scaled.
"""

from __future__ import annotations

from collections.abc import Iterator

from minillm.model.config import GATED_MLPS, ModelConfig
from minillm.model.families.common import expect
from minillm.model.families.naming import named_table
from minillm.model.layouts import Row
from minillm.model.positions import RELATIVE_BUCKETS, RELATIVE_MAX_DISTANCE

MLPS = {"relu": "relu", "gelu": "gelu", "gated-gelu": "geglu_tanh", "gated-silu": "swiglu"}


def read(published: dict) -> tuple[ModelConfig, ModelConfig]:
    expect(published, relative_attention_num_buckets=RELATIVE_BUCKETS)
    expect(published, relative_attention_max_distance=RELATIVE_MAX_DISTANCE)
    mlp = published.get("feed_forward_proj", "relu")
    if mlp not in MLPS:
        raise ValueError(f"config.json has feed_forward_proj={mlp!r}; known are {sorted(MLPS)}")
    # transformers 5 ties every T5 in its config.json, and says here which ones really are.
    tied = published.get("scale_decoder_outputs", published.get("tie_word_embeddings", True))
    shared = {
        "vocab_size": published["vocab_size"],
        "d_model": published["d_model"],
        "n_heads": published["num_heads"],
        "head_dim": published["d_kv"],
        "d_ff": published["d_ff"],
        "max_length": published.get("n_positions", 512),
        "position": "relative",
        "attention_scale": 1.0,
        "norm": "rms",
        "norm_eps": published["layer_norm_epsilon"],
        "mlp": MLPS[mlp],
        "bias": False,
    }
    n_layers = published["num_layers"]
    encoder = ModelConfig(**shared, n_layers=n_layers, mask="bidirectional")
    decoder = ModelConfig(
        **shared,
        n_layers=published.get("num_decoder_layers") or n_layers,
        cross_attention=True,
        tie_embeddings=tied,
        logit_scale=published["d_model"] ** -0.5 if tied else 1.0,
    )
    return encoder, decoder


def write(config: tuple[ModelConfig, ModelConfig]) -> dict:
    encoder, decoder = config
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "is_encoder_decoder": True,
        "vocab_size": encoder.vocab_size,
        "d_model": encoder.d_model,
        "num_layers": encoder.n_layers,
        "num_decoder_layers": decoder.n_layers,
        "num_heads": encoder.n_heads,
        "d_kv": encoder.head_dim,
        "d_ff": encoder.d_ff,
        "n_positions": encoder.max_length,
        "relative_attention_num_buckets": RELATIVE_BUCKETS,
        "relative_attention_max_distance": RELATIVE_MAX_DISTANCE,
        "layer_norm_epsilon": encoder.norm_eps,
        "feed_forward_proj": {ours: theirs for theirs, ours in MLPS.items()}.get(encoder.mlp),
        "tie_word_embeddings": decoder.tie_embeddings,
        "scale_decoder_outputs": decoder.tie_embeddings,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


def table(config: tuple[ModelConfig, ModelConfig]) -> Iterator[Row]:
    encoder, decoder = config
    names = {"encoder.embedding": "shared", **stack("encoder", encoder)}
    yield from named_table(encoder, names)
    cross = "decoder.block.{}.layer.1"
    names = {
        **stack("decoder", decoder),
        "decoder.blocks.{}.cross_norm": f"{cross}.layer_norm",
        "decoder.blocks.{}.cross_attention.q": f"{cross}.EncDecAttention.q",
        "decoder.blocks.{}.cross_attention.kv": tuple(f"{cross}.EncDecAttention.{x}" for x in "kv"),
        "decoder.blocks.{}.cross_attention.out": f"{cross}.EncDecAttention.o",
        "decoder.unembed": "lm_head",
    }
    yield from named_table(decoder, names)


def stack(side: str, config: ModelConfig) -> dict[str, str | tuple[str, ...]]:
    """What encoder and decoder have in common; the MLP comes last in a block."""
    ours, theirs = f"{side}.blocks.{{}}", f"{side}.block.{{}}.layer"
    attention = f"{theirs}.0.SelfAttention"
    last = f"{theirs}.{2 if config.cross_attention else 1}"
    mlp = {f"{ours}.mlp.up": f"{last}.DenseReluDense.wi"}
    if config.mlp in GATED_MLPS:
        gate_up = (f"{last}.DenseReluDense.wi_0", f"{last}.DenseReluDense.wi_1")
        mlp = {f"{ours}.mlp.gate_up": gate_up}
    return {
        f"{side}.relative_bias": f"{attention.format(0)}.relative_attention_bias",
        f"{ours}.attention_norm": f"{theirs}.0.layer_norm",
        f"{ours}.attention.qkv": tuple(f"{attention}.{part}" for part in "qkv"),
        f"{ours}.attention.out": f"{attention}.o",
        f"{ours}.mlp_norm": f"{last}.layer_norm",
        **mlp,
        f"{ours}.mlp.down": f"{last}.DenseReluDense.wo",
        f"{side}.norm": f"{side}.final_layer_norm",
    }


def canonical(name: str) -> str | None:
    """Copies of the shared embedding, and a table of cross-attention that nothing reads."""
    surplus = ("embed_tokens.weight", "EncDecAttention.relative_attention_bias.weight")
    return None if name.endswith(surplus) else name

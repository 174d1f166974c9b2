"""The Llama pattern: the fields and tensor names most decoders have shared since LLaMA.

A family of this pattern says how it differs: other norms, fused tensors, experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from minillm.model.config import ModelConfig, llama_config
from minillm.model.families.common import (
    GATED_ACTIVATIONS,
    activation,
    published_activation,
    read_rope,
    read_sizes,
    write_rope,
    write_sizes,
)
from minillm.model.families.naming import qkv_rows
from minillm.model.layouts import SAME, Layout, Row, experts, linear, rows

# Our norms of a block by where they stand, and what they are called in files.
PRE_NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}


def read_decoder(published: dict, **choices: Any) -> ModelConfig:
    """Llama's choices, the sizes and constants of the file, and then the family's ``choices``."""
    fields = {
        **read_sizes(published),
        "n_kv_heads": published.get("num_key_value_heads"),
        "head_dim": published.get("head_dim"),
        "d_ff": published["intermediate_size"],
        "norm_eps": published.get("rms_norm_eps", 1e-6),
        "tie_embeddings": published.get("tie_word_embeddings", False),
    }
    if "mlp" not in choices:
        fields["mlp"] = activation(published, "hidden_act", GATED_ACTIVATIONS)
    if "rope" not in choices:
        fields["rope"] = read_rope(published)
    return llama_config(**fields | choices)


def write_decoder(config: ModelConfig, architecture: str, **others: Any) -> dict:
    """What `read_decoder` reads, for `transformers` and all who read its files."""
    return {
        "architectures": [architecture],
        **write_sizes(config),
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.d_ff,
        "hidden_act": published_activation(config.mlp),
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        **write_rope(config.rope),
        **others,
    }


def read_window(published: dict, layer_types: list[str] | None = None) -> dict:
    """The sliding window and the layers without it, as fields of a ModelConfig.

    Args:
        layer_types: "sliding_attention" or "full_attention" for each layer, for a file that does
            not say; None gives every layer the window.
    """
    window, n_layers = published.get("sliding_window"), published["num_hidden_layers"]
    types = published.get("layer_types") or layer_types or ["sliding_attention"] * n_layers
    if unknown := set(types) - {"sliding_attention", "full_attention"}:
        raise ValueError(f"config.json has layers of type {sorted(unknown)}, not supported")
    global_layers = tuple(i for i, kind in enumerate(types) if kind == "full_attention")
    if not window or len(global_layers) == n_layers:
        return {}
    return {"window": window, "global_layers": global_layers}


def write_layer_types(config: ModelConfig) -> list[str]:
    """Layer by layer "sliding_attention" or "full_attention"."""
    is_global = [config.window is None or i in config.global_layers for i in range(config.n_layers)]
    return ["full_attention" if it else "sliding_attention" for it in is_global]


@dataclass(frozen=True)
class ExpertNames:
    """What a file calls the parts of a mixture of experts, below the name of a layer."""

    router: str = "mlp.gate"
    experts: str = "mlp.experts"
    gate_up: tuple[str, str] = ("gate_proj", "up_proj")
    down: str = "down_proj"
    shared: str = "mlp.shared_expert"
    shared_gate: str = "mlp.shared_expert_gate"


def decoder_table(
    config: ModelConfig,
    norms: dict[str, str] = PRE_NORMS,
    norm_layout: Layout = SAME,
    attention: Callable[[ModelConfig, str, str], Iterator[Row]] | None = None,
    mlp: Callable[[ModelConfig, str, str, int], Iterator[Row]] | None = None,
    expert_names: ExpertNames | None = None,
) -> Iterator[Row]:
    """The rows of a decoder.

    Args:
        norms: our norm of a block → theirs.
        norm_layout: of the weights of these norms and the last one.
        attention, mlp: the rows of these modules, if they are not Llama's; called with the
            configuration, our name and theirs, and the MLP's width.
    """
    attention, mlp = attention or attention_rows, mlp or mlp_rows
    yield from linear("embedding", "model.embed_tokens")
    yield from linear("norm", "model.norm", bias=has_norm_bias(config), layout=norm_layout)
    if not config.tie_embeddings:
        yield from linear("unembed", "lm_head")
    for i in range(config.n_layers):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        for our_norm, their_norm in norms.items():
            names = f"{ours}.{our_norm}", f"{theirs}.{their_norm}"
            yield from linear(*names, bias=has_norm_bias(config), layout=norm_layout)
        yield from attention(config, f"{ours}.attention", f"{theirs}.self_attn")
        if config.moe and i not in config.moe.dense_layers:
            yield from expert_rows(config, f"{ours}.mlp", theirs, expert_names or ExpertNames())
        else:
            yield from mlp(config, f"{ours}.mlp", f"{theirs}.mlp", config.d_ff)


def has_norm_bias(config: ModelConfig) -> bool:
    return config.norm == "layer" and config.norm_bias


def attention_rows(config: ModelConfig, ours: str, theirs: str) -> Iterator[Row]:
    """Queries, keys and values in three tensors."""
    qkv = [f"{theirs}.{part}_proj" for part in "qkv"]
    yield from linear(f"{ours}.qkv", *qkv, bias=config.qkv_bias, layout=qkv_rows(config))
    yield from linear(f"{ours}.out", f"{theirs}.o_proj", bias=config.bias)
    if config.qk_norm != "none":
        yield from linear(f"{ours}.q_norm", f"{theirs}.q_norm")
        yield from linear(f"{ours}.k_norm", f"{theirs}.k_norm")


def mlp_rows(config: ModelConfig, ours: str, theirs: str, width: int) -> Iterator[Row]:
    """Gate and up in two tensors."""
    gate_up = [f"{theirs}.{part}_proj" for part in ("gate", "up")]
    yield from linear(f"{ours}.gate_up", *gate_up, bias=config.bias, layout=rows(width, width))
    yield from linear(f"{ours}.down", f"{theirs}.down_proj", bias=config.bias)


def fused_mlp_rows(config: ModelConfig, ours: str, theirs: str, width: int) -> Iterator[Row]:
    """Gate and up in one tensor, as ours."""
    yield from linear(f"{ours}.gate_up", f"{theirs}.gate_up_proj", bias=config.bias)
    yield from linear(f"{ours}.down", f"{theirs}.down_proj", bias=config.bias)


def expert_rows(config: ModelConfig, ours: str, layer: str, names: ExpertNames) -> Iterator[Row]:
    moe = config.moe
    each = [f"{layer}.{names.experts}.{e}" for e in range(moe.n_experts)]
    gate_up = tuple(f"{expert}.{part}.weight" for expert in each for part in names.gate_up)
    down = tuple(f"{expert}.{names.down}.weight" for expert in each)
    yield from linear(f"{ours}.router", f"{layer}.{names.router}")
    if moe.balance_bias:
        yield Row(f"{ours}.router_bias", (f"{layer}.{names.router}.e_score_correction_bias",), SAME)
    yield Row(f"{ours}.experts.gate_up", gate_up, experts(moe.n_experts, 2))
    yield Row(f"{ours}.experts.down", down, experts(moe.n_experts))
    if moe.d_shared:
        shared = f"{layer}.{names.shared}"
        yield from mlp_rows(config, f"{ours}.shared", shared, moe.d_shared)
    if moe.shared_gate:
        yield from linear(f"{ours}.shared_gate", f"{layer}.{names.shared_gate}")

"""Published weights in our Transformer: Hugging Face folders and GGUF files, GPT-2 and Llama.

A family is two functions: its ``config.json`` as a ModelConfig, and its tensor names and layouts
as ours. Everything else (sharded files, missing tensors, tied output) is shared.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from minillm.data import assets
from minillm.data.tokenizer import Tokenizer
from minillm.model.config import ModelConfig, Rope, gpt2_config, llama_config
from minillm.model.gguf import GGUF
from minillm.model.transformer import Transformer

# Gives one tensor by its published name; taking it frees it, so nothing is held twice.
Take = Callable[[str], Tensor]


def gpt2_config_from(published: dict) -> ModelConfig:
    return gpt2_config(
        published["vocab_size"],
        d_model=published["n_embd"],
        n_layers=published["n_layer"],
        n_heads=published["n_head"],
        d_ff=published.get("n_inner"),
        max_length=published["n_positions"],
        norm_eps=published["layer_norm_epsilon"],
        mlp={"gelu_new": "gelu_tanh", "gelu": "gelu"}[published["activation_function"]],
    )


def gpt2_weights(config: ModelConfig, take: Take) -> dict[str, Tensor]:
    """GPT-2 stores its matrices transposed (inputs first), queries, keys and values as one."""
    weights = {
        "embedding.weight": take("wte.weight"),
        "position_embedding.weight": take("wpe.weight"),
        "norm.weight": take("ln_f.weight"),
        "norm.bias": take("ln_f.bias"),
    }
    renamed = {
        "attention_norm": "ln_1",
        "attention.qkv": "attn.c_attn",
        "attention.out": "attn.c_proj",
        "mlp_norm": "ln_2",
        "mlp.up": "mlp.c_fc",
        "mlp.down": "mlp.c_proj",
    }
    for i in range(config.n_layers):
        for ours, theirs in renamed.items():
            weight = take(f"h.{i}.{theirs}.weight")
            weights[f"blocks.{i}.{ours}.weight"] = weight.t().contiguous()
            weights[f"blocks.{i}.{ours}.bias"] = take(f"h.{i}.{theirs}.bias")
    return weights


def llama_config_from(published: dict) -> ModelConfig:
    rope = published.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default" or published.get("rope_scaling"):
        raise ValueError("this Llama scales its RoPE; only the plain form is supported so far")
    biases = published.get("attention_bias"), published.get("mlp_bias")
    if any(biases) or published.get("hidden_act", "silu") != "silu":
        raise ValueError("this Llama has biases or an activation other than silu: not supported")
    return llama_config(
        published["vocab_size"],
        d_model=published["hidden_size"],
        n_layers=published["num_hidden_layers"],
        n_heads=published["num_attention_heads"],
        n_kv_heads=published.get("num_key_value_heads"),
        head_dim=published.get("head_dim"),
        d_ff=published["intermediate_size"],
        max_length=published["max_position_embeddings"],
        rope=Rope(rope.get("rope_theta") or published.get("rope_theta", 10_000.0)),
        norm_eps=published["rms_norm_eps"],
        tie_embeddings=published.get("tie_word_embeddings", False),
    )


def llama_weights(config: ModelConfig, take: Take) -> dict[str, Tensor]:
    """Llama keeps q, k, v and gate, up apart; we multiply with them at once."""
    weights = {
        "embedding.weight": take("model.embed_tokens.weight"),
        "norm.weight": take("model.norm.weight"),
    }
    if not config.tie_embeddings:
        weights["unembed.weight"] = take("lm_head.weight")
    for i in range(config.n_layers):
        ours, theirs = f"blocks.{i}.", f"model.layers.{i}."
        qkv = [take(f"{theirs}self_attn.{x}_proj.weight") for x in "qkv"]
        gate_up = [take(f"{theirs}mlp.{x}_proj.weight") for x in ("gate", "up")]
        weights[ours + "attention_norm.weight"] = take(theirs + "input_layernorm.weight")
        weights[ours + "attention.qkv.weight"] = torch.cat(qkv)
        weights[ours + "attention.out.weight"] = take(theirs + "self_attn.o_proj.weight")
        weights[ours + "mlp_norm.weight"] = take(theirs + "post_attention_layernorm.weight")
        weights[ours + "mlp.gate_up.weight"] = torch.cat(gate_up)
        weights[ours + "mlp.down.weight"] = take(theirs + "mlp.down_proj.weight")
    return weights


FAMILIES = {
    "gpt2": (gpt2_config_from, gpt2_weights),
    "llama": (llama_config_from, llama_weights),
}


def from_huggingface(folder: str | Path) -> Transformer:
    """Load a folder with ``config.json`` and ``*.safetensors`` (one file or several shards).

    Raises:
        ValueError: an unknown model type, a configuration we cannot express, or tensors that are
            missing, surplus or of another shape (all of them are listed).
    """
    folder = Path(folder)
    published = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise ValueError(f"{folder} holds no .safetensors file; pickled weights are never loaded")
    tensors = {}
    for shard in shards:
        with safe_open(shard, framework="pt") as file:
            tensors |= {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    return from_published(published, tensors)


def from_published(published: dict, tensors: dict[str, Tensor]) -> Transformer:
    """The model that a ``config.json`` and its named tensors describe (float32)."""
    family = published.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"model_type={family!r} is not known; known are {sorted(FAMILIES)}")
    read_config, read_weights = FAMILIES[family]
    config = read_config(published)
    # GPT-2 files name tensors with and without this prefix, and some store the causal mask.
    left = {
        name.removeprefix("transformer."): tensor
        for name, tensor in tensors.items()
        if not name.endswith((".attn.bias", ".attn.masked_bias"))
        and not (config.tie_embeddings and name == "lm_head.weight")
    }
    missing = []

    def take(name: str) -> Tensor:
        if name not in left:
            missing.append(name)
            return torch.empty(0)
        return left.pop(name)

    weights = read_weights(config, take)
    if missing or left:
        raise ValueError(f"{family} weights: missing {missing}, surplus {sorted(left)}")
    return Transformer.from_weights(config, weights)


def from_gguf(file: GGUF) -> Transformer:
    """Build the model of a Llama-family GGUF file, dequantised to float32.

    Raises:
        ValueError: another architecture, or a damaged file.
    """
    about = file.metadata
    if about.get("general.architecture") != "llama":
        raise ValueError(
            f"{file.path}: architecture {about.get('general.architecture')!r}, expected 'llama'"
        )
    config = llama_config(
        len(about["tokenizer.ggml.tokens"]),
        d_model=about["llama.embedding_length"],
        n_layers=about["llama.block_count"],
        n_heads=about["llama.attention.head_count"],
        n_kv_heads=about["llama.attention.head_count_kv"],
        d_ff=about["llama.feed_forward_length"],
        max_length=about["llama.context_length"],
        rope=Rope(about["llama.rope.freq_base"]),
        norm_eps=about["llama.attention.layer_norm_rms_epsilon"],
        tie_embeddings="output.weight" not in file.names,
    )
    n_rows = {"q": config.n_heads, "k": config.n_kv_heads}

    def take(name: str) -> Tensor:
        name = gguf_name(name)
        weight = file.tensor(name)
        for part, n_heads in n_rows.items():
            if name.endswith(f"attn_{part}.weight"):
                weight = half_split(weight, n_heads)
        return weight

    return Transformer.from_weights(config, llama_weights(config, take))


def gguf_name(name: str) -> str:
    """The GGUF name of a Llama tensor: model.layers.0.mlp.up_proj.weight → blk.0.ffn_up.weight."""
    renamed = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "model.layers": "blk",
        "self_attn.o_proj": "attn_output",
        "self_attn.": "attn_",
        "mlp.": "ffn_",
        "_proj": "",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    for theirs, gguf in renamed.items():
        name = name.replace(theirs, gguf)
    return name


def half_split(weight: Tensor, n_heads: int) -> Tensor:
    """Undo GGUF's order of the rows of q and k.

    The converter interleaves the two halves of each head, for a RoPE that turns neighbouring
    channels; ours turns channel i with channel i + D/2.
    """
    rows, columns = weight.shape
    return (
        weight.reshape(n_heads, rows // n_heads // 2, 2, columns)
        .swapaxes(1, 2)
        .reshape(rows, columns)
    )


def smollm2() -> tuple[Transformer, Tokenizer]:
    """SmolLM2-135M-Instruct (Allal et al. 2025): real weights in our Transformer, its tokenizer.

    Returns:
        The model in float32 (538 MB) and its tokenizer; the end of a turn is ``<|im_end|>``.
    """
    file = GGUF(assets.path("smollm2"))
    return from_gguf(file), Tokenizer.from_gguf(file.metadata)

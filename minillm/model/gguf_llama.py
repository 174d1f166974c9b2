"""What a GGUF file calls the parts of a Llama-family model, and how it orders their rows."""

from __future__ import annotations

from torch import Tensor

from minillm.model.config import ModelConfig, Rope, llama_config
from minillm.model.gguf import GGUF


def gguf_config(file: GGUF) -> ModelConfig:
    """The configuration in the metadata of a Llama-family GGUF file.

    Raises:
        ValueError: another architecture.
    """
    about = file.metadata
    if about.get("general.architecture") != "llama":
        raise ValueError(
            f"{file.path}: architecture {about.get('general.architecture')!r}, expected 'llama'"
        )
    if about.get("llama.rope.scaling.type", "none") != "none":
        raise ValueError(f"{file.path}: scales its rotations, which is not read from GGUF files")
    return llama_config(
        len(about["tokenizer.ggml.tokens"]),
        d_model=about["llama.embedding_length"],
        n_layers=about["llama.block_count"],
        n_heads=about["llama.attention.head_count"],
        n_kv_heads=about["llama.attention.head_count_kv"],
        d_ff=about["llama.feed_forward_length"],
        max_length=about["llama.context_length"],
        rope=Rope(about.get("llama.rope.freq_base", 10_000.0)),
        norm_eps=about["llama.attention.layer_norm_rms_epsilon"],
        tie_embeddings="output.weight" not in file.names,
    )


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


def interleaved(weight: Tensor, n_heads: int) -> Tensor:
    """Undo `half_split`: the order in which GGUF holds the rows of q and k."""
    rows, columns = weight.shape
    return (
        weight.reshape(n_heads, 2, rows // n_heads // 2, columns)
        .swapaxes(1, 2)
        .reshape(rows, columns)
    )

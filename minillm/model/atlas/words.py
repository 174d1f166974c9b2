"""A configuration in words, so that two models can be compared idea by idea."""

from __future__ import annotations

from minillm.model.atlas.entry import Entry
from minillm.model.config import ModelConfig

MLPS = {
    "gelu": "GELU",
    "gelu_tanh": "GELU",
    "relu": "ReLU",
    "swiglu": "SwiGLU, gated",
    "geglu": "GeGLU, gated",
    "geglu_tanh": "GeGLU, gated",
}
PLACES = {
    "pre": "before attention and MLP",
    "post": "after each sum",
    "sandwich": "before and after attention and MLP",
    "output": "after attention and MLP, before the sum",
}


def describe(entry: Entry) -> dict[str, str]:
    """What the model is made of, one phrase an idea; ideas it does without are left out."""
    c = entry.config
    phrases = {
        "size": f"{c.n_layers} layers of {c.d_model:,} channels",
        "vocabulary": f"{c.vocab_size:,} tokens, "
        + ("one table for input and output" if c.tie_embeddings else "separate output matrix"),
        "architecture": "encoder–decoder" if entry.encoder else _stack(c),
        "attention": _attention(c),
        "positions": _positions(c),
        "window": _window(c),
        "norm": _norm(c),
        "MLP": f"{MLPS[c.mlp]}, {c.d_ff:,} wide",
        "experts": _experts(c),
        "residual": {
            "parallel": "attention and MLP side by side",
            "parallel_one_norm": "attention and MLP side by side, behind one norm",
        }.get(c.residual, ""),
        "biases": _biases(c),
        "soft-capping": "scores or logits bent by tanh"
        if c.attention_softcap or c.logit_softcap
        else "",
    }
    return {idea: phrase for idea, phrase in phrases.items() if phrase}


def differences(a: Entry, b: Entry) -> dict[str, tuple[str, str]]:
    """The ideas in which two models differ, with a phrase for each; "–" where one lacks it."""
    left, right = describe(a), describe(b)
    ideas = [*left, *(idea for idea in right if idea not in left)]
    pairs = {idea: (left.get(idea, "–"), right.get(idea, "–")) for idea in ideas}
    return {idea: pair for idea, pair in pairs.items() if pair[0] != pair[1]}


def _stack(c: ModelConfig) -> str:
    return {"causal": "decoder", "prefix": "prefix decoder", "bidirectional": "encoder"}[c.mask]


def _attention(c: ModelConfig) -> str:
    if c.latent:
        n_cached = c.latent.kv_rank + c.latent.rope_dim
        return f"latent: {c.n_heads} heads read {n_cached} cached numbers a token"
    heads = f"{c.n_heads} heads of {c.head_dim}"
    if c.n_kv_heads == 1:
        heads += ", one key/value head for all"
    elif c.n_kv_heads < c.n_heads:
        heads += f", {c.n_kv_heads} key/value heads"
    normed = {"none": "", "head": ", each query and key normed", "all": ", queries and keys normed"}
    return heads + normed[c.qk_norm]


def _positions(c: ModelConfig) -> str:
    if c.position != "rope":
        return {
            "learned": f"a learned table of {c.max_length:,}",
            "alibi": "ALiBi, farther is fainter",
            "relative": "a learned bias for each distance",
            "none": "none that we have; see the note",
        }[c.position]
    text = f"rotary, base {c.rope.base:,.0f}"
    if c.rope.fraction < 1:
        text += f", {c.rope.fraction:.0%} of each head"
    if c.rope.skip_layers:
        text += f", none in {len(c.rope.skip_layers)} layers"
    return text + (f", {c.rope.scaling.kind} scaling" if c.rope.scaling else "")


def _window(c: ModelConfig) -> str:
    if not c.window:
        return ""
    everywhere = "in every layer" if not c.global_layers else "in some layers"
    return f"{c.window:,} tokens {everywhere}"


def _norm(c: ModelConfig) -> str:
    kind = "RMSNorm" if c.norm == "rms" else "LayerNorm"
    return f"{kind} {PLACES[c.norm_place]}" + (", and on the embedding" if c.embedding_norm else "")


def _experts(c: ModelConfig) -> str:
    if not c.moe:
        return ""
    text = f"{c.moe.n_active} of {c.moe.n_experts}, each {c.moe.d_expert:,} wide"
    if c.moe.d_shared:
        text += f", and a shared one of {c.moe.d_shared:,}"
    if c.moe.dense_layers:
        text += f"; the first {len(c.moe.dense_layers)} layers are dense"
    return text


def _biases(c: ModelConfig) -> str:
    if c.bias:
        return "in every matrix" if c.qkv_bias else "in every matrix but queries, keys and values"
    return "for queries, keys and values" if c.qkv_bias else "none"

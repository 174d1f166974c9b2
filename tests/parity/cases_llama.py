"""Tiny models of the decoders since LLaMA, without experts."""

import transformers
from pairs import VOCABULARY

SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 36, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "intermediate_size": 44, "max_position_embeddings": 19,
    "rms_norm_eps": 0.1, "pad_token_id": 0, "attn_implementation": "eager",
}  # fmt: skip
WINDOW = 5  # less than the longest row, and than what a cache is first filled with


def build(name, **changes):
    config = getattr(transformers, f"{name}Config")(**SIZES | changes)
    return getattr(transformers, f"{name}ForCausalLM")(config)


def scaled(kind, **settings):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 100.0, **settings}}


PHI_LONG = {
    "max_position_embeddings": 9, "original_max_position_embeddings": 3,
    **scaled("longrope", short_factor=[1.0, 1.5], long_factor=[2.0, 3.5],
             partial_rotary_factor=0.7),
}  # fmt: skip
CASES = {
    "llama": lambda: build("Llama", head_dim=10, **scaled("default")),
    "llama_tied_biases": lambda: build(
        "Llama", tie_word_embeddings=True, attention_bias=True, mlp_bias=True
    ),
    "llama_linear": lambda: build("Llama", **scaled("linear", factor=2.5)),
    "llama_3": lambda: build(
        "Llama", head_dim=12, **scaled("llama3", factor=4.0, low_freq_factor=1.0,
        high_freq_factor=3.0, original_max_position_embeddings=30)
    ),
    "llama_yarn": lambda: build(
        "Llama", head_dim=12, **scaled("yarn", factor=4.0, beta_fast=4.0,
        original_max_position_embeddings=30)
    ),
    "mistral": lambda: build("Mistral", sliding_window=WINDOW),
    "mistral_no_window": lambda: build("Mistral", sliding_window=None, head_dim=8),
    "qwen2": lambda: build("Qwen2"),
    "qwen2_window": lambda: build(
        "Qwen2", use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
    ),
    "qwen3": lambda: build("Qwen3", head_dim=8, tie_word_embeddings=True),
    "phi3": lambda: build("Phi3", sliding_window=WINDOW),
    "phi3_long": lambda: build("Phi3", **PHI_LONG),
    "gemma": lambda: build("Gemma", head_dim=10),
    "gemma2": lambda: build(
        "Gemma2", head_dim=10, sliding_window=WINDOW, query_pre_attn_scalar=7,
        attn_logit_softcapping=3.0, final_logit_softcapping=4.0,
    ),
    "stablelm": lambda: build(
        "StableLm", layer_norm_eps=0.1, use_qkv_bias=True, hidden_size=48
    ),
    "stablelm_parallel": lambda: build(
        "StableLm", layer_norm_eps=0.1, use_parallel_residual=True, partial_rotary_factor=0.4
    ),
    "glm": lambda: build("Glm", head_dim=12),
    "glm4": lambda: build("Glm4", head_dim=8, attention_bias=False),
    "olmo2": lambda: build("Olmo2", attention_bias=False),
    "smollm3": lambda: build("SmolLM3", no_rope_layer_interval=2),
}  # fmt: skip

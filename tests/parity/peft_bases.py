"""The tiny models of `transformers` that `peft` gets to wrap."""

from transformers import GPT2Config, LlamaConfig

SIZES = {"vocab_size": 50, "bos_token_id": None, "eos_token_id": None}
LLAMA = LlamaConfig(
    hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=32, **SIZES,
)  # fmt: skip
GPT2 = GPT2Config(
    n_embd=24, n_layer=2, n_head=3, n_positions=32, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    **SIZES,
)  # fmt: skip

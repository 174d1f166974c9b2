"""Latent attention: a DeepSeek shape beside `transformers`, and two ways to decode at 4k context.

Training: forward and backward of a small DeepSeek-V3 shape (latent attention, shared and routed
experts), the library's eager attention. Decoding: one token on a latent cache of 4,096, absorbed
(attention on the latents) against expanded (keys and values of every head made anew).
"""

import torch
from turns import in_turns

from minillm.model.cache import KVCache
from minillm.model.config import Latent, MoE, Rope, llama_config
from minillm.model.latent import LatentAttention
from minillm.model.transformer import Transformer

VOCAB, LAYERS, WIDTH, HEADS = 512, 4, 256, 8
BATCH, CONTEXT, CACHED = 2, 512, 4096


def our_model(max_length: int) -> Transformer:
    return Transformer(
        llama_config(
            VOCAB, d_model=WIDTH, n_layers=LAYERS, n_heads=HEADS, head_dim=32, d_ff=768,
            max_length=max_length, rope=Rope(pairs="interleaved"),
            latent=Latent(kv_rank=128, rope_dim=16, q_rank=192),
            moe=MoE(
                16, 4, d_expert=96, d_shared=96, scores="sigmoid", n_groups=4, n_active_groups=2,
                scale=2.5, balance_bias=True, dense_layers=(0,),
            ),
        )
    )  # fmt: skip


def their_model():
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    return DeepseekV3ForCausalLM(
        DeepseekV3Config(
            vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=LAYERS, intermediate_size=768,
            num_attention_heads=HEADS, num_key_value_heads=HEADS, q_lora_rank=192,
            kv_lora_rank=128, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32,
            n_routed_experts=16, num_experts_per_tok=4, moe_intermediate_size=96,
            n_shared_experts=1, n_group=4, topk_group=2, first_k_dense_replace=1,
            max_position_embeddings=CONTEXT, use_cache=False, attn_implementation="eager",
            bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip


def training() -> None:
    tokens = torch.randint(VOCAB, (BATCH, CONTEXT))
    ours, theirs = our_model(CONTEXT), their_model()
    counts = [sum(p.numel() for p in model.parameters()) for model in (ours, theirs)]
    assert counts[0] == counts[1], f"ours has {counts[0]} weights, theirs {counts[1]}"

    def step(model, logits_of) -> None:
        model.zero_grad(set_to_none=True)
        logits_of(model(tokens)).logsumexp(-1).mean().backward()

    seconds, _ = in_turns(
        {
            "ours": lambda: step(ours, lambda logits: logits),
            "transformers": lambda: step(theirs, lambda output: output.logits),
        }
    )
    print(
        f"DeepSeek shape {LAYERS}L/{WIDTH}d/T{CONTEXT}/B{BATCH} forward and backward: "
        f"{BATCH * CONTEXT / seconds['ours']:,.0f} tokens/s, "
        f"{seconds['transformers'] / seconds['ours']:.2f}x transformers (bar 1.15)"
    )


@torch.inference_mode()
def decoding() -> None:
    model = our_model(CACHED + 1).eval()
    cache = KVCache(model.config, 1, CACHED + 1)
    cache.advance(CACHED)  # what is in the cache does not change the time
    token = torch.zeros(1, 1, dtype=torch.int64)
    rule = LatentAttention.absorbing_is_cheaper

    def step(absorbed: bool) -> None:
        LatentAttention.absorbing_is_cheaper = lambda self, n_queries: absorbed
        for _ in range(3):
            model(token, cache=cache)

    seconds, _ = in_turns({"absorbed": lambda: step(True), "expanded": lambda: step(False)})
    LatentAttention.absorbing_is_cheaper = rule
    print(
        f"latent cache, one token at {CACHED} context: {seconds['absorbed'] / 3 * 1e3:.1f} ms, "
        f"{seconds['expanded'] / seconds['absorbed']:.1f}x expanding (bar 1.0)"
    )


def main() -> None:
    training()
    decoding()


if __name__ == "__main__":
    main()

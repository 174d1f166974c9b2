"""How many weights a configuration has, by arithmetic alone.

Shapes: C channels, H query heads, K key/value heads, D head size, F width of the MLP,
E experts, V vocabulary. A test holds every sum below to the model that is really built.
"""

from __future__ import annotations

from minillm.model.config import GATED_MLPS, ModelConfig

RELATIVE_BUCKETS = 32


def count_by_part(config: ModelConfig, active: bool = False) -> dict[str, int]:
    """Weights of one stack by what they do; with ``active`` only the experts one token meets.

    The keys are "embedding", "attention", "mlp", "experts", "norms" and "output". Biases belong
    to the matrix they follow, a router to its experts.
    """
    c = config
    V, C, L = c.vocab_size, c.d_model, c.n_layers
    n_sparse = L - len(c.moe.dense_layers) if c.moe else 0
    positions = {"learned": c.max_length * C, "relative": RELATIVE_BUCKETS * c.n_heads}
    return {
        "embedding": V * C + positions.get(c.position, 0),
        "attention": L * attention_weights(c) + L * cross_attention_weights(c),
        "mlp": (L - n_sparse) * mlp_weights(c, c.d_ff),
        "experts": n_sparse * expert_weights(c, active) if c.moe else 0,
        "norms": norm_weights(c),
        "output": (0 if c.tie_embeddings else V * C) + (C * C + C + V if c.mlm_head else 0),
    }


def attention_weights(c: ModelConfig) -> int:
    """Queries, keys, values and output of one layer, with the norms inside attention."""
    C, H, K, D = c.d_model, c.n_heads, c.n_kv_heads, c.head_dim
    if c.latent:
        return latent_weights(c)
    qkv = (C + c.qkv_bias) * (H + 2 * K) * D
    out = (H * D + c.bias) * C
    return qkv + out + {"none": 0, "head": 2 * D, "all": (H + K) * D}[c.qk_norm]


def latent_weights(c: ModelConfig) -> int:
    """Multi-head latent attention: two matrices where others have one, with a norm between."""
    C, H, D, R = c.d_model, c.n_heads, c.head_dim, c.latent.rope_dim
    rank, value_dim = c.latent.kv_rank, c.latent.value_dim or D
    query = C * H * (D + R)
    if c.latent.q_rank:
        query = c.latent.q_rank * (C + 1 + H * (D + R))
    keys_and_values = C * (rank + R) + rank + rank * H * (D + value_dim)
    return query + keys_and_values + H * value_dim * C


def cross_attention_weights(c: ModelConfig) -> int:
    """The decoder's look at the encoder: a second attention in every layer."""
    if not c.cross_attention:
        return 0
    C, H, K, D = c.d_model, c.n_heads, c.n_kv_heads, c.head_dim
    return (C + c.qkv_bias) * (H + 2 * K) * D + (H * D + c.bias) * C


def mlp_weights(c: ModelConfig, width: int) -> int:
    """Two matrices, or three with a gate."""
    into = 2 if c.mlp in GATED_MLPS else 1
    return into * (c.d_model + c.bias) * width + (width + c.bias) * c.d_model


def expert_weights(c: ModelConfig, active: bool) -> int:
    """Router, experts and shared expert of one layer."""
    n = c.moe.n_active if active else c.moe.n_experts
    into = 2 if c.mlp in GATED_MLPS else 1
    shared = mlp_weights(c, c.moe.d_shared) if c.moe.d_shared else 0
    gate = c.d_model if c.moe.shared_gate else 0
    return c.moe.n_experts * c.d_model + n * (into + 1) * c.d_model * c.moe.d_expert + shared + gate


def norm_weights(c: ModelConfig) -> int:
    """All norms over the residual stream: some in every layer, perhaps one at either end."""
    in_layer = 4 if c.norm_place == "sandwich" else 1 if c.residual == "parallel_one_norm" else 2
    n = c.n_layers * (in_layer + c.cross_attention)
    n += (c.norm_place != "post") + c.embedding_norm + c.mlm_head
    return n * c.d_model * (2 if c.norm == "layer" and c.norm_bias else 1)


def count_parameters(*stacks: ModelConfig, active: bool = False) -> int:
    """All weights of a model of one stack, or of an encoder and a decoder with one embedding."""
    total = sum(sum(count_by_part(stack, active).values()) for stack in stacks)
    shared = sum(stack.vocab_size * stack.d_model for stack in stacks[1:])
    return total - shared


def count_active(*stacks: ModelConfig) -> int:
    """Weights that take part for one token: all but the experts that were not chosen."""
    return count_parameters(*stacks, active=True)

"""Latent attention: two paths, one result; a cache of the published size.

B batch, T time, C channels, R latent rank.
"""

import pytest
import torch
from helpers import randomised

from minillm.model.cache import KVCache
from minillm.model.config import Latent, ModelConfig, Rope
from minillm.model.latent import LatentAttention
from minillm.model.transformer import Transformer

LENGTHS = (9, 4, 7)


def small_config(**changes) -> ModelConfig:
    """Sizes that all differ, so that no swapped axis passes; an eps large enough to show."""
    latent = changes.pop("latent", Latent(kv_rank=12, rope_dim=4, q_rank=10, value_dim=5))
    fields = {
        "vocab_size": 31, "d_model": 24, "n_layers": 2, "n_heads": 3, "head_dim": 6,
        "position": "rope", "norm": "rms", "norm_eps": 0.1, "mlp": "swiglu", "bias": False,
        "tie_embeddings": False, "max_length": 32, "latent": latent,
    }  # fmt: skip
    return ModelConfig(**{**fields, **changes})


def random_model(config: ModelConfig) -> Transformer:
    return randomised(Transformer(config), mean=0.1)


CONFIGS = {
    "query latent": small_config(),
    "plain queries, biases": small_config(latent=Latent(kv_rank=12, rope_dim=4), bias=True),
    "interleaved, own scale": small_config(
        rope=Rope(base=50.0, pairs="interleaved"), attention_scale=0.7
    ),
    "half without positions": small_config(rope=Rope(skip_layers=(1,))),
    "soft-capped": small_config(attention_softcap=2.0),
    "layer norm": small_config(norm="layer", norm_bias=True),
}


@pytest.fixture(params=CONFIGS)
def model(request) -> Transformer:
    return random_model(CONFIGS[request.param])


def force(monkeypatch, absorbed: bool) -> None:
    monkeypatch.setattr(LatentAttention, "absorbing_is_cheaper", lambda self, n: absorbed)


@torch.no_grad()
@pytest.mark.parametrize("absorbed", [True, False])
@pytest.mark.parametrize("chunks", [(1,) * 9, (9,), (4, 1, 3, 1)])
def test_reading_with_the_latent_cache_equals_one_forward_pass(
    model, absorbed, chunks, monkeypatch
):
    force(monkeypatch, absorbed)
    tokens = torch.randint(31, (3, 9), generator=torch.Generator().manual_seed(2))
    cache = KVCache(model.config, 3, 12)
    parts = []
    for part in tokens.split(chunks, dim=1):
        parts.append(model(part, cache=cache))
        cache.advance(part.shape[1])
    torch.testing.assert_close(torch.cat(parts, 1), model(tokens), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("absorbed", [True, False])
@pytest.mark.parametrize("n_more", [1, 3])
def test_rows_of_different_lengths_share_a_cache(model, absorbed, n_more, monkeypatch):
    force(monkeypatch, absorbed)
    random = torch.Generator().manual_seed(3)
    tokens = torch.randint(31, (3, max(LENGTHS) + n_more), generator=random)
    cache = KVCache(model.config, 3, max(LENGTHS) + n_more)
    model(tokens[:, : max(LENGTHS)], cache=cache)
    cache.advance(torch.tensor(LENGTHS))
    new = torch.stack([row[n : n + n_more] for row, n in zip(tokens, LENGTHS, strict=True)])
    logits = model(new, cache=cache)
    for row, n in enumerate(LENGTHS):
        alone = model(tokens[row : row + 1, : n + n_more])[0, n:]
        torch.testing.assert_close(logits[row], alone, rtol=1e-5, atol=1e-5)


def test_gradients_flow_alike_through_both_paths(model):
    attention = model.blocks[0].attention
    stream = torch.randn(3, 9, 24, generator=torch.Generator().manual_seed(4))
    view = model.view(stream, torch.arange(9))
    weights = torch.linspace(-1, 1, attention.out.in_features)
    gradients = []
    for path in (attention.expanded, attention.absorbed):
        x = stream.clone().requires_grad_()
        mixed = path(attention.queries(x, view.rotation), attention.latents(x, view.rotation), view)
        (mixed.transpose(1, 2).flatten(2) * weights).sum().backward()
        gradients.append([x.grad, *(p.grad for p in attention.parameters() if p.grad is not None)])
        model.zero_grad()
    for expanded, absorbed in zip(*gradients, strict=True):
        torch.testing.assert_close(absorbed, expanded, rtol=1e-4, atol=1e-5)


def test_documents_in_one_row_do_not_see_each_other(model):
    tokens = torch.randint(31, (3, 9), generator=torch.Generator().manual_seed(5))
    documents = torch.tensor([[0] * 4 + [1] * 5] * 3)
    changed = tokens.clone()
    changed[:, :4] = (changed[:, :4] + 1) % 31
    logits, others = model(tokens, documents=documents), model(changed, documents=documents)
    torch.testing.assert_close(logits[:, 4:], others[:, 4:])
    assert (logits[:, :4] - others[:, :4]).abs().max() > 0.01


def test_the_cache_holds_one_latent_and_one_rotary_key_a_token():
    """DeepSeek-V2 and V3: 512 + 64 numbers a token and layer (DeepSeek-V2, §2.1.4 and table 1).

    Their 128 heads of 128 would need 2 · 128 · 128 = 32,768 numbers with ordinary attention.
    """
    config = small_config(
        n_layers=61, n_heads=128, head_dim=128, d_model=7168, latent=Latent(512, 64, q_rank=1536)
    )
    assert config.cache_shape == (1, 576, 0)
    with torch.device("meta"):
        model = Transformer(config)
    assert model.kv_bytes(1, torch.bfloat16) == 61 * 576 * 2
    cache = KVCache(small_config(), 3, 7)
    assert cache.keys.numel() + cache.values.numel() == 2 * 3 * 7 * (12 + 4)


def test_a_layer_can_do_without_positions():
    model = random_model(CONFIGS["half without positions"])
    x = torch.randn(3, 9, 24, generator=torch.Generator().manual_seed(6))
    view = model.view(x, torch.arange(9))
    later = model.view(x, torch.arange(0, 27, 3))  # other distances
    moved = [(b.attention(x, view) - b.attention(x, later)).abs().max() for b in model.blocks]
    assert moved[0] > 0.01 and moved[1] == 0


def test_few_queries_are_absorbed_and_many_are_expanded():
    """R = 512, D_k = D_v = 128: n · (1024 − 256) < 512 · 256 up to n = 170."""
    wide = small_config(d_model=16, n_heads=2, head_dim=128, latent=Latent(512, 64))
    attention = LatentAttention(wide, 0)
    assert attention.absorbing_is_cheaper(1) and attention.absorbing_is_cheaper(170)
    assert not attention.absorbing_is_cheaper(171)

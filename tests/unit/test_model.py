"""The Transformer's own promises: what it refuses, what it counts, how it starts."""

import math
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import minillm
from minillm.model.attention import attention, grouped_attention
from minillm.model.cache import KVCache
from minillm.model.config import ModelConfig, MoE, Rope, gpt2_config, llama_config
from minillm.model.masks import causal_mask, document_mask
from minillm.model.positions import rope_angles, rotate
from minillm.model.transformer import Transformer

TINY = gpt2_config(31, d_model=12, n_layers=2, n_heads=3, max_length=9)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"vocab_size": 0}, "vocab_size=0: expected a positive number"),
        ({"d_model": 10, "n_heads": 3}, "d_model=10 is not divisible by n_heads=3"),
        ({"n_heads": 4, "n_kv_heads": 3}, "n_heads=4 is not a multiple of n_kv_heads=3"),
        ({"position": "sinus"}, "position='sinus': expected one of"),
        ({"norm": "batch"}, "norm='batch'"),
        ({"mlp": "relu9"}, "mlp='relu9'"),
        ({"position": "rope", "head_dim": 7}, "head_dim=7 .* an odd number"),
        ({"norm_eps": 0.0}, "norm_eps=0.0"),
        ({"alibi_scale": -0.5}, "alibi_scale=-0.5"),
    ],
)
def test_config_refuses(changes, words):
    with pytest.raises(ValueError, match=words):
        ModelConfig(**{"vocab_size": 10, "d_model": 12, "n_heads": 3, **changes})


@pytest.mark.parametrize(
    "tokens, words",
    [
        (torch.zeros(2, 3), r"torch.float32 of shape \(2, 3\): expected int64"),
        (torch.zeros(3, dtype=torch.int64), r"add a batch dimension"),
        (torch.zeros(1, 10, dtype=torch.int64), "10 tokens, but the model has learned 9"),
        (torch.tensor([[31]]), "run from 31 to 31: expected 0 to 30"),
        (torch.tensor([[-1]]), "run from -1 to -1"),
    ],
)
def test_forward_refuses(tokens, words):
    with pytest.raises(ValueError, match=words):
        Transformer(TINY)(tokens)


def test_cache_refuses_what_does_not_fit():
    cache = KVCache(TINY, batch_size=2, max_length=4)
    model = Transformer(TINY)
    with pytest.raises(ValueError, match="3 rows of tokens, 2 rows in the cache"):
        model(torch.zeros(3, 1, dtype=torch.int64), cache=cache)
    with pytest.raises(ValueError, match="holds 4 tokens a row and 5 are needed"):
        model(torch.zeros(2, 5, dtype=torch.int64), cache=cache)
    with pytest.raises(ValueError, match="expected 2 counts"):
        cache.advance([1, 1, 1])
    with pytest.raises(ValueError, match="exceed max_length=4"):
        cache.advance([1, 5])
    assert cache.lengths.tolist() == [0, 0], "a refused advance must change nothing"


def test_attention_is_what_torch_computes_including_gradients():
    g = torch.Generator().manual_seed(0)
    q = torch.randn(3, 6, 5, 7, generator=g).requires_grad_()
    k, v = (torch.randn(3, 2, 5, 7, generator=g).requires_grad_() for _ in "kv")
    mask = causal_mask(torch.arange(5), 5)
    spread = [x.repeat_interleave(3, dim=1) for x in (k, v)]
    by_hand = attention(q, *spread, mask)
    expected = torch.autograd.grad(by_hand.square().sum(), (q, k, v))
    for fused_mask in (None, mask):
        fused = grouped_attention(q, k, v, fused_mask)
        torch.testing.assert_close(fused, by_hand)
        for a, b in zip(
            torch.autograd.grad(fused.square().sum(), (q, k, v)), expected, strict=True
        ):
            torch.testing.assert_close(a, b)
    torch.testing.assert_close(
        grouped_attention(q[:, :, -1:], k, v, None), by_hand[:, :, -1:], msg="one new token"
    )


def test_masks_on_hand_written_cases():
    assert causal_mask(torch.tensor([1, 2]), 4).int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]
    packed = document_mask(torch.tensor([[0, 0, 1]]))
    assert packed[0, 0].int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]


def test_rope_scores_depend_on_distance_only():
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=g)

    def score(t, s):
        turned = [
            rotate(x, *rope_angles(torch.tensor([p]), 8, Rope(100.0))) for x, p in ((q, t), (k, s))
        ]
        return (turned[0] * turned[1]).sum().item()

    assert score(9, 4) == pytest.approx(score(25, 20), abs=1e-5)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-3)


def test_parameter_count_follows_the_formula():
    """GPT-2: V·C + T·C + n·(12·C² + 13·C) + 2·C with tied output."""
    C, V, T, n = 12, 31, 9, 2
    assert Transformer(TINY).n_parameters() == V * C + T * C + n * (12 * C * C + 13 * C) + 2 * C
    gpt2 = gpt2_config(50257, d_model=768, n_layers=12, n_heads=12, max_length=1024)
    with torch.device("meta"):
        assert Transformer(gpt2).n_parameters() == 124_439_808  # Radford et al. 2019


def test_flops_agree_with_torchs_counter():
    model = Transformer(llama_config(31, d_model=24, n_layers=2, n_heads=3, n_kv_heads=1))
    tokens = torch.zeros(1, 8, dtype=torch.int64)
    # The counter knows plain matrix products only, not the fused CPU kernel.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens)
    # torch counts the full T × T score matrix; the causal half is what has to be computed.
    upper_half = 4 * 2 * 3 * 8 * (8 * 7 // 2)
    assert model.flops(8) == counter.get_total_flops() - upper_half
    assert model.flops(3) + model.flops(5, context=3) == model.flops(8)


def test_kv_bytes_are_the_bytes_the_cache_takes():
    config = llama_config(31, d_model=24, n_layers=2, n_heads=6, n_kv_heads=2)
    for dtype in (torch.float32, torch.bfloat16):
        cache = KVCache(config, 1, 17, dtype=dtype)
        assert Transformer(config).kv_bytes(17, dtype) == cache.keys.nbytes + cache.values.nbytes


def test_a_seed_means_one_model_and_leaves_the_global_generator_out_of_it():
    a, b, c = (Transformer(TINY, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q)
    assert not torch.equal(a.embedding.weight, c.embedding.weight)


def test_an_untrained_model_is_little_more_surprised_than_a_uniform_guess():
    """Logits start with variance 1, which costs about half a nat over log V."""
    config = gpt2_config(997, d_model=64, n_layers=4, n_heads=4)
    tokens = torch.randint(997, (4, 32), generator=torch.Generator().manual_seed(0))
    logits = Transformer(config)(tokens)
    loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert 0 < loss.item() - math.log(997) < 0.7


def test_load_refuses_files_that_are_not_ours(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"not a model written by Transformer\.save"):
        Transformer.load(path)
    weights = {k: v for k, v in Transformer(TINY).state_dict().items() if k != "unembed.weight"}
    weights["extra"] = weights.pop("norm.bias")
    weights["norm.weight"] = torch.ones(5)
    with pytest.raises(
        ValueError, match=r"missing norm.bias; surplus extra; norm.weight has shape"
    ):
        Transformer.from_weights(TINY, weights)


def test_save_leaves_no_temporary_file_and_replaces_whole(tmp_path):
    Transformer(TINY).save(tmp_path / "m.safetensors")
    Transformer(TINY, torch.Generator().manual_seed(5)).save(tmp_path / "m.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_device_names():
    assert minillm.device("cpu") == torch.device("cpu")
    assert minillm.device().type in ("cuda", "mps", "cpu")
    for name in ("gpu", "cpu:x", "cuda:one", "meta", ""):
        with pytest.raises(ValueError, match=f"device='{name}': expected 'auto'"):
            minillm.device(name)


def test_a_device_that_this_machine_lacks_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert minillm.device() == torch.device("cuda")
    assert minillm.device("cuda:1") == torch.device("cuda:1")
    for name in ("cuda:2", "mps:1", "cpu:1"):
        with pytest.raises(ValueError, match=f"device='{name}' is not available"):
            minillm.device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert minillm.device() == torch.device("mps")
    with pytest.raises(ValueError, match="device='cuda' is not available"):
        minillm.device("cuda")


def test_building_a_model_does_not_import_the_compiler():
    """Random draws on the meta device would import torch._dynamo: a second, and 100 MB."""
    code = (
        "import sys, torch\n"
        "from minillm.model.config import gpt2_config\n"
        "from minillm.model.transformer import Transformer\n"
        "with torch.device('meta'): Transformer(gpt2_config(31, d_model=12, n_heads=3))\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_all_that_writes_into_the_stream_starts_smaller_with_depth():
    """By √(2·n_layers): attention, MLP, experts and shared expert; what reads does not."""
    moe = MoE(4, 2, d_expert=64, d_shared=64, dense_layers=(0,))
    config = llama_config(31, d_model=64, n_layers=8, n_heads=4, d_ff=64, moe=moe)
    weights = dict(Transformer(config).named_parameters())
    for name in (
        "blocks.0.attention.out.weight",
        "blocks.0.mlp.down.weight",
        "blocks.1.mlp.experts.down",
        "blocks.1.mlp.shared.down.weight",
    ):
        assert weights[name].std().item() == pytest.approx(1 / math.sqrt(64 * 16), rel=0.1), name
    for name in ("blocks.0.attention.qkv.weight", "blocks.1.mlp.shared.gate_up.weight"):
        assert weights[name].std().item() == pytest.approx(1 / math.sqrt(64), rel=0.1), name

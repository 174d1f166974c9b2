"""The atlas against what was published: parameters, active parameters, cache bytes, FLOPs."""

import dataclasses
import re

import pytest
import torch

from minillm.model import atlas
from minillm.model.atlas import ATLAS, count_active, count_by_part, count_parameters, find
from minillm.model.config import MoE, llama_config
from minillm.model.transformer import Transformer

# Printed with two or three digits, so the figure itself is coarser than 1%: "130B" for 128.7
# billion, "14B" for 14.25. Their counts must lie within 1% of what the figure can stand for.
COARSE_TOTAL = {"GLM-130B", "Galactica-120B"}
COARSE_ACTIVE = {"DeepSeek-V2-Lite", "Qwen2-57B-A14B", "Hunyuan-Large", "Qwen3-30B-A3B"}

FAMILIES = """\
GPT-1 GPT-2 GPT-3 BERT T5 Flan-T5 PanGu-alpha CPM-2 CodeGen GPT-NeoX OPT GLM-130B
ChatGLM BLOOM LLaMA-7B Llama-2 Llama-3-8B Llama-3.1 Llama-3.2 Llama-3.3 Falcon Baichuan-
Baichuan2 Qwen-7B Qwen1.5 Qwen2- Qwen2.5 QwQ Mistral Mixtral InternLM DeepSeek-LLM DeepSeek-V2
DeepSeek-V3 DeepSeek-R1 Gemma MiniCPM Phi-3 Phi-4 Grok-1 Hunyuan-Large Chinchilla Gopher PaLM
Galactica SmolLM2 Qwen3 OLMo-2 SmolLM3 GLM-4 Pythia StableLM
"""


@pytest.mark.parametrize("name", ATLAS)
def test_counts_are_those_published_and_those_of_the_formula(name):
    entry = ATLAS[name]
    assert entry.total_error(rounding=name in COARSE_TOTAL) < 0.01
    assert entry.active_error(rounding=name in COARSE_ACTIVE) < 0.01
    # The properties count the model that was built; the formula only does sums.
    assert entry.total_parameters - entry.extra_parameters == count_parameters(*entry.stacks)
    assert entry.active_parameters - entry.extra_parameters == count_active(*entry.stacks)


def test_figures_that_are_printed_to_the_last_digit_are_met_to_the_last_digit():
    exact = [entry for entry in ATLAS.values() if not re.search("[MB]", entry.published)]
    assert len(exact) > 100
    for entry in exact:
        assert f"{entry.total_parameters:,}" == entry.published, entry.name


def test_every_family_is_there_and_every_entry_is_complete():
    assert [f for f in FAMILIES.split() if not any(name.startswith(f) for name in ATLAS)] == []
    for entry in ATLAS.values():
        assert entry.source and entry.licence and entry.organisation, entry.name
        assert 2018 < entry.year < 2026
        assert not entry.extra_parameters or entry.note, entry.name
        assert (entry.published_active is None) or entry.config.moe, entry.name
    assert list(ATLAS.values()) == sorted(ATLAS.values(), key=lambda entry: entry.year)


def test_cache_bytes_are_those_published():
    """DeepSeek-AI 2025, Insights into DeepSeek-V3, Table 1: kilobytes a token in bfloat16."""
    assert find("DeepSeek-V3").kv_bytes_per_token() == 70_272
    assert find("Qwen2.5-72B").kv_bytes_per_token() == 327_680
    assert find("Llama-3.1-405B").kv_bytes_per_token() == 516_096
    # DeepSeek-V2 2024, abstract and §3.2.3: 93.3% less than DeepSeek 67B, stored in 6 bits.
    ours, theirs = find("DeepSeek-V2"), find("DeepSeek-LLM-67B")
    saved = 1 - ours.kv_bytes_per_token(bits=6) / theirs.kv_bytes_per_token()
    assert round(saved, 3) == 0.933
    # Llama 2 70B: 8 key/value heads serve 64 query heads (Touvron et al. 2023, §2.2).
    grouped = find("Llama-2-70B")
    every_head = dataclasses.replace(grouped.config, n_kv_heads=64)
    many = dataclasses.replace(grouped, config=every_head)
    assert many.kv_bytes_per_token() == 8 * grouped.kv_bytes_per_token()
    assert find("BERT-base").kv_bytes_per_token() == 0
    # Hunyuan-Large: "almost 95%" less than 80 heads in 64 layers (Sun et al. 2024, §2).
    every_head = 2 * 80 * 80 * 64 * 2
    assert find("Hunyuan-Large").kv_bytes_per_token() == 0.05 * every_head


@pytest.mark.parametrize(
    ("name", "gigaflops"),
    [("DeepSeek-V2", 155), ("DeepSeek-V3", 250), ("Llama-3.1-405B", 2448)],
)
def test_training_cost_is_that_published(name, gigaflops):
    """The same paper, Table 2, at 4,096 tokens: three forward passes, half the tokens behind."""
    measured = 3 * find(name).flops_per_token(context=2048) / 1e9
    assert measured == pytest.approx(gigaflops, rel=0.02)


def test_flops_are_twice_the_weights_that_multiply():
    for name in ("Llama-2-7B", "Mixtral-8x7B", "DeepSeek-V3", "T5-base"):
        entry = find(name)
        used = entry.active_parameters - entry.extra_parameters
        if not entry.config.tie_embeddings:
            used -= entry.config.vocab_size * entry.config.d_model
        assert entry.flops_per_token() == pytest.approx(2 * used, rel=0.001)
        assert entry.flops_per_token(1000) > entry.flops_per_token()


def test_formula_equals_a_model_with_real_weights():
    moe = MoE(6, 2, 40, d_shared=24, shared_gate=True, dense_layers=(0,))
    assert all(p.is_meta for p in find("DeepSeek-V3").build().parameters())
    for changes in ({}, {"moe": moe}, {"qkv_bias": True, "qk_norm": "all", "mlp": "geglu"}):
        config = llama_config(97, d_model=32, n_layers=3, n_heads=4, n_kv_heads=2, **changes)
        model = Transformer(config, torch.Generator().manual_seed(0))
        assert count_parameters(config) == model.n_parameters()
        assert count_active(config) == model.n_parameters(active=True)
        assert sum(count_by_part(config).values()) == model.n_parameters()


def test_memory():
    """135M weights at 4 bits, and a cache of 2 · 30 · 3 · 64 numbers of 16 bits a token."""
    entry = find("SmolLM2-135M")
    assert entry.memory(4) == 134_515_008 / 2
    assert entry.memory(16, n_tokens=1000) == 134_515_008 * 2 + 1000 * 2 * 30 * 3 * 64 * 2


def test_find():
    for name, meant in {
        "deepseek-v3": "DeepSeek-V3",
        "Llama 2 70B": "Llama-2-70B",
        "PanGu-α 200B": "PanGu-alpha-200B",
        "grok": "Grok-1",
        "GPT_2": "GPT-2",  # though four names begin so
    }.items():
        assert find(name) is ATLAS[meant]
    assert all(find(name.replace("-", " ").upper()) is entry for name, entry in ATLAS.items())
    with pytest.raises(ValueError, match=r"'OPT' may be one of 5 .*: OPT-125M, .*OPT-175B$"):
        find("OPT")
    with pytest.raises(ValueError, match=r"no model 'lama 2 70b'.*Llama-2-70B"):
        find("lama 2 70b")
    for nothing in ("☃", "", "-"):
        with pytest.raises(ValueError, match="nothing similar"):
            find(nothing)


def test_printed_figures_and_errors():
    assert atlas.printed("6,738,415,616") == (6_738_415_616, 0)
    assert atlas.printed("2.4B") == pytest.approx((2.4e9, 0.05e9))
    assert atlas.printed("117M") == (117e6, 0.5e6)
    assert atlas.error(246, "240", rounding=True) == pytest.approx(0.025)
    assert atlas.error(2_449_000_000, "2.4B") == 0
    assert atlas.error(2_449_000_000, "2.4B", rounding=False) == pytest.approx(49 / 2400)
    for bad in ("70 billion", "B", "-3B"):
        with pytest.raises(ValueError, match="expected digits"):
            atlas.printed(bad)


def test_differences_are_told_in_words():
    told = atlas.differences(find("LLaMA-65B"), find("Llama-2-70B"))
    assert told.keys() == {"attention", "MLP"}
    assert told["attention"] == ("64 heads of 128", "64 heads of 128, 8 key/value heads")
    told = atlas.differences(find("DeepSeek-LLM-67B"), find("DeepSeek-V3"))
    assert told["experts"][0] == "–" and "8 of 256" in told["experts"][1]
    assert "latent" in told["attention"][1] and "yarn" in told["positions"][1]
    assert atlas.differences(find("DeepSeek-V3"), find("DeepSeek-R1")) == {}
    for entry in ATLAS.values():
        assert all(phrase for phrase in atlas.describe(entry).values())
